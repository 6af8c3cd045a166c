"""Ways of asking and of deciding, each through the whole pipeline against the stand-in teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_generate import assert_equal_entries, read_json, read_lines, reference, run

from alpaca_ray.errors import DataError, TeacherError
from alpaca_ray.records import read_seed_tasks
from alpaca_ray.testing.teacher import StandIn, standin

pytestmark = pytest.mark.ray


def test_shards_of_the_pool_change_nothing(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02})) as server:
        run(tmp_path, server, num_instructions_to_generate=40, num_shards=3)
    assert_equal_entries(
        read_json(tmp_path / "regen.json"), reference(read_lines(tmp_path / "journal.jsonl")[1:], [], 40)
    )


def test_machine_examples_are_drawn_from_what_was_kept(ray_cluster: None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"num_prompt_instructions": 8, "machine_examples": 2, "max_in_flight": 32}
    with standin(StandIn.resolve({"jitter": 0.02, "tasks": 1})) as server:
        run(tmp_path / "whole", server, num_instructions_to_generate=10_000, max_requests=300, **given)
        prompts = list(server.prompts)
    rows = {row["request_id"]: row for row in read_lines(tmp_path / "whole" / "journal.jsonl")[1:]}
    regen = read_json(tmp_path / "whole" / "regen.json")
    assert not any(seed.startswith("machine:") for number in range(256) for seed in rows[number]["seed_ids"])
    later = [row for number, row in rows.items() if number >= 256]
    assert all(sum(seed.startswith("machine:") for seed in row["seed_ids"]) == 2 for row in later)
    shown = regen[int(next(seed for seed in later[0]["seed_ids"] if seed.startswith("machine:")).split(":")[1])]
    assert any(shown["instruction"].rstrip(":") in prompt for prompt in prompts)
    # The same, stopped and taken up in the second period.
    with standin(StandIn.resolve({"jitter": 0.02, "tasks": 1})) as server:
        for most, flags in ((270, {}), (300, {"resume": True})):
            run(tmp_path / "parts", server, num_instructions_to_generate=10_000, max_requests=most, **given, **flags)
    assert read_json(tmp_path / "parts" / "regen.json") == regen


def test_evolution_asks_for_one_task_at_a_time(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02})) as server:
        metrics = run(tmp_path, server, num_instructions_to_generate=60, strategy="evolve", api="chat")
    rows = read_lines(tmp_path / "journal.jsonl")[1:]
    assert metrics["total"] == 60 <= len(rows)
    assert all(len(row["seed_ids"]) == 1 for row in rows)


def test_json_answers_are_held_to_a_schema(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02, "rate_length": 0.2})) as server:
        metrics = run(tmp_path, server, num_instructions_to_generate=30, response_format="json_schema")
        assert all(body["response_format"]["type"] == "json_schema" and "messages" in body for body in server.seen)
    assert metrics["total"] == 30
    assert metrics["rejected"]["truncated"] > 0


def test_a_reasoning_teacher(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"reasoning": True, "think_tokens": 200})) as server:
        with pytest.raises(TeacherError, match=r"temperature.*--drop_params"):
            run(tmp_path / "refused", server, api="chat")
        given: dict[str, Any] = {
            "api": "chat",
            "drop_params": ["temperature"],
            "extra_body": {"reasoning_effort": "low"},
        }
        metrics = run(tmp_path / "out", server, num_instructions_to_generate=20, **given)
        answers = [body for body in server.seen if "max_completion_tokens" in body]
        assert all(body["reasoning_effort"] == "low" and "temperature" not in body for body in answers)
        assert metrics["tokens"]["completion"] == server.tokens["completion"] > 200 * metrics["requests"]
    assert metrics["errors"] == {}
    assert not any("<think>" in json.dumps(record) for record in read_json(tmp_path / "out" / "regen.json"))


def test_what_is_near_to_an_evaluation_set_is_dropped(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02})) as server:
        run(tmp_path / "first", server, num_instructions_to_generate=10)
        known = [record["instruction"] for record in read_json(tmp_path / "first" / "regen.json")]
        evaluation = tmp_path / "evaluation.jsonl"
        evaluation.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in known[:3]))
        metrics = run(tmp_path / "out", server, num_instructions_to_generate=10, decontaminate=[str(evaluation)])
        with pytest.raises(DataError, match="no such file"):
            run(tmp_path / "none", server, decontaminate=[str(tmp_path / "absent.jsonl")])
    assert metrics["rejected"]["contaminated"] >= 3
    kept = {record["instruction"] for record in read_json(tmp_path / "out" / "regen.json")}
    assert not kept & set(known[:3])
    assert {task["instruction"] for task in read_seed_tasks("seeds")}.isdisjoint(kept)


def test_stanford_compat_sends_and_keeps_as_the_original(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02})) as server:
        given: dict[str, Any] = {"stanford_compat": True, "num_instructions_to_generate": 30}
        run(tmp_path, server, **given)
        assert all(body["stop"] == ["\n20", "20.", "20."] for body in server.seen)
        assert all(body["logit_bias"] == {"50256": -100} for body in server.seen)
    assert any(not record["output"] for record in read_json(tmp_path / "regen.json")), "the original lets them pass"
