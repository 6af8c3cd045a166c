"""Budgets and rate limits of a run, as the teacher sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_generate import CLASSIC, assert_equal_entries, read_json, read_lines, reference, run

from alpaca_ray.errors import GenerationError, OutputError, SettingsError
from alpaca_ray.generate.pipeline import generate
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.testing.teacher import StandIn, standin

pytestmark = pytest.mark.ray

PRICES = {"stand-in": [10.0, 100.0]}


@pytest.mark.parametrize("answer_tokens", [[150], [150, 3000], [2900, 3000]])
def test_a_budget_is_never_exceeded_at_any_length_of_answers(
    ray_cluster: None, tmp_path: Path, answer_tokens: list[int]
) -> None:
    budget = 12.0
    with standin(StandIn.resolve({"latency": 0.2, "jitter": 0.2, "answer_tokens": answer_tokens})) as server:
        metrics = run(
            tmp_path,
            server,
            num_instructions_to_generate=100000,
            max_in_flight=64,
            max_cost=budget,
            prices=PRICES,
            max_requests=400,
        )
        served = server.tokens
        paid = (served["prompt"] * 10.0 + served["completion"] * 100.0) / 1e6
    assert metrics["cost"]["total"] == pytest.approx(paid)
    assert paid <= budget
    if answer_tokens == [2900, 3000]:  # the budget ends the run, and less than one request's worst case is left over
        assert metrics["requests"] < 400
        assert budget - paid < (3072 * 100 + 10000 * 10) / 1e6
    assert read_json(tmp_path / "run.json")["complete"] is False


def test_a_budget_lasts_over_sessions(ray_cluster: None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"num_instructions_to_generate": 1000, "max_in_flight": 4}
    with standin(StandIn.resolve({"latency": 0.05, "answer_tokens": [1000, 2000]})) as server:
        first = run(tmp_path, server, max_tokens_total=40_000, **given)
        assert 0 < sum(server.tokens.values()) == first["cost"]["tokens_at_most"] <= 40_000
        with pytest.raises(SettingsError, match="max_tokens_total leaves no room for a request: a request may take"):
            run(tmp_path / "none", server, max_tokens_total=100, **given)
        with pytest.raises(SettingsError, match="tokens_per_minute 10: a request may take"):
            run(tmp_path / "none", server, tokens_per_minute=10, **given)
        assert not (tmp_path / "none").exists()
        second = run(tmp_path, server, max_tokens_total=80_000, resume=True, **given)
        assert first["cost"]["tokens_at_most"] < second["cost"]["tokens_at_most"] <= 80_000
        assert sum(server.tokens.values()) == second["cost"]["tokens_at_most"]


def test_a_budget_in_dollars_needs_a_price(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn()) as server:
        with pytest.raises(SettingsError, match=r"--max_cost needs the price of .*--prices"):
            run(tmp_path / "out", server, model_name="stand-in", max_cost=1.0)
        assert sum(server.prompts.values()) == 0
    assert not (tmp_path / "out").exists()


def test_what_is_lost_counts_in_full(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"rate_drop_body": 0.3, "seed": 2})) as server:
        metrics = run(tmp_path, server, num_instructions_to_generate=1000, max_requests=12, max_retries=20)
        counted = sum(server.tokens.values())
    assert metrics["errors"]["connection"] > 0
    assert metrics["cost"]["uncertain_tokens"] >= metrics["errors"]["connection"] * 3072
    assert metrics["cost"]["tokens_at_most"] >= counted


def test_a_rate_limit_is_shared_by_eight_clients(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"latency": 0.1, "tasks": 1})) as server:
        metrics = run(
            tmp_path,
            server,
            num_instructions_to_generate=1000,
            max_requests=150,
            max_in_flight=32,
            num_clients=8,
            requests_per_minute=900,
        )
        # On a machine that is busy some arrive half a second late; unshared it would be eight times as many.
        assert server.arrivals.most_within(5.0) <= 75 + 8
        assert server.statuses == {200: 150}
    assert metrics["errors"] == {}


@pytest.mark.slow
def test_two_runs_share_a_limit(ray_cluster: None, tmp_path: Path) -> None:
    """Two jobs, each with a cluster of its own, against one teacher."""
    job = Path(__file__).parents[2] / "jobs" / "generate.py"
    environment = {**os.environ, "ALPACA_RAY_CACHE": str(tmp_path / "cache")}
    with standin(StandIn.resolve({"latency": 0.1, "tasks": 1})) as server:
        flags = [
            *("--base_url", server.url, "--num_instructions_to_generate", "1000", "--max_requests", "40"),
            *("--requests_per_minute", "300", "--max_in_flight", "16", "--num_cpus", "1"),
        ]
        jobs = [
            subprocess.Popen(
                [sys.executable, str(job), "--output_dir", str(tmp_path / name), *flags],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for name in ("a", "b")
        ]
        for child in jobs:
            _, errors = child.communicate(timeout=200)
            assert child.returncode == 0, errors.decode()
        assert server.statuses == {200: 80}
        assert server.arrivals.most_within(5.0) <= 25 + 5, "twice as many if each had the limit to itself"


def test_a_run_of_rate_limits_pauses_and_loses_nothing(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("alpaca_ray.generate.session.say", lines.append)
    with standin(StandIn.resolve({"requests_per_second": 4, "tasks": 2})) as server:
        metrics = run(tmp_path, server, num_instructions_to_generate=1000, max_requests=24, max_in_flight=24)
        refused = server.statuses[429]
    assert refused > 0
    assert (metrics["requests"], metrics["failed"], metrics["errors"]) == (24, 0, {"rate_limit": refused})
    assert any("answers nothing but rate limits" in line and "pausing" in line for line in lines)
    assert any("answers again" in line for line in lines)


def test_a_stage_without_progress_ends_with_what_is_wrong(ray_cluster: None, tmp_path: Path) -> None:
    words = r"no answer from .* \(--stall_timeout\).*rate_limit: Rate limit"
    with (
        standin(StandIn.resolve({"rate_429": 1.0, "retry_after": 1000})) as server,
        pytest.raises(GenerationError, match=words),
    ):
        run(tmp_path, server, num_instructions_to_generate=5, stall_timeout=4.0)


def test_every_kind_of_error_is_counted_and_the_run_completes(ray_cluster: None, tmp_path: Path) -> None:
    faults = {
        **{"rate_429": 0.05, "rate_500": 0.05, "rate_503": 0.05, "rate_drop": 0.05, "rate_drop_body": 0.03},
        **{"rate_drip": 0.02, "drip": 1.0, "rate_truncated_json": 0.05, "rate_empty": 0.04, "rate_length": 0.1},
        **{"rate_refusal": 0.04, "rate_filtered": 0.04, "rate_no_usage": 0.1, "retry_after": 0.1},
    }
    with standin(StandIn.resolve({**faults, "seed": 11})) as server:
        metrics = run(
            tmp_path,
            server,
            api="chat",
            num_instructions_to_generate=400,
            max_in_flight=32,
            max_retries=20,
            request_timeout=3.0,
        )
        statuses, seen = dict(server.statuses), dict(server.faults)
    errors = metrics["errors"]
    assert errors["rate_limit"] == statuses[429]
    assert errors["status_500"] == statuses[500]
    assert errors["status_503"] == statuses[503]
    assert set(errors) == {
        *("rate_limit", "status_500", "status_503", "connection", "timeout", "bad_answer", "no_text", "refusal"),
    }
    assert errors["connection"] == seen["drop"] + seen["drop_body"]
    assert errors["timeout"] == seen["drip"]
    assert errors["bad_answer"] == seen["truncated_json"]
    assert metrics["rejected"]["truncated"] > 0
    assert metrics["tokens"]["estimated"] > 0
    assert metrics["failed"] == errors["no_text"] + errors["refusal"]
    assert len(read_json(tmp_path / "regen.json")) == 400
    assert_equal_entries(
        read_json(tmp_path / "regen.json"), reference(read_lines(tmp_path / "journal.jsonl")[1:], [], 400)
    )


def test_a_replay_applies_other_filters_without_a_request(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02})) as server:
        first = run(tmp_path, server, num_instructions_to_generate=40, prices={"stand-in": [1.0, 2.0]})
        assert first["cost"]["total"] > 0
        asked = sum(server.prompts.values())
        journal = read_lines(tmp_path / "journal.jsonl")
        generate(GenerateSettings.resolve({"output_dir": str(tmp_path), "replay": True, "similarity_threshold": 0.3}))
        stricter = read_json(tmp_path / "metrics.json")
        assert sum(server.prompts.values()) == asked
        assert stricter["rejected"]["too_similar"] > first["rejected"].get("too_similar", 0)
        assert (stricter["target"], stricter["requests"], stricter["cost"]) == (40, first["requests"], first["cost"])
        assert read_lines(tmp_path / "journal.jsonl")[: len(journal)] == journal
        with pytest.raises(OutputError, match="are stand-in's, not other's: leave --model_name out"):
            generate(GenerateSettings.resolve({"output_dir": str(tmp_path), "replay": True, "model_name": "other"}))
        # A resumed run goes on by the rule that was replayed, and is told so where it is another.
        generate(GenerateSettings.resolve({"output_dir": str(tmp_path), "replay": True, **CLASSIC}))
        assert len(read_json(tmp_path / "regen.json")) == 40
        run(tmp_path, server, num_instructions_to_generate=60, resume=True)
    rows = [row for row in read_lines(tmp_path / "journal.jsonl")[1:] if "request_id" in row]
    assert_equal_entries(read_json(tmp_path / "regen.json"), reference(rows, [], 60))


def test_several_endpoints_share_the_requests_by_weight(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"jitter": 0.02})) as first, standin(StandIn.resolve({"jitter": 0.02})) as second:
        generate(
            GenerateSettings.resolve(
                {
                    "output_dir": str(tmp_path),
                    "endpoints": [f"{first.url} weight=3", second.url],
                    "num_instructions_to_generate": 1000,
                    "max_requests": 80,
                    "num_cpus": 1,
                }
            )
        )
        counts = [sum(server.prompts.values()) for server in (first, second)]
    assert counts == [60, 20]
    assert json.loads((tmp_path / "metrics.json").read_text())["requests"] == 80
