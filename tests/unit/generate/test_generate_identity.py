from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import OutputError
from alpaca_ray.generate import identity
from alpaca_ray.generate.journal import Header
from alpaca_ray.generate.teacher import Teacher, choose_teachers
from alpaca_ray.settings.generate import DECIDING, GenerateSettings

URL = "http://127.0.0.1:1/v1"
TASK = {"id": "s1", "instruction": "x", "input": "", "output": "y"}


def resolved(**given: Any) -> GenerateSettings:
    known = {} if "endpoints" in given else {"base_url": URL, "model_name": "m"}
    return GenerateSettings.resolve({**known, **given}, dict.fromkeys(given, "flag"))


def teachers_of(settings: GenerateSettings) -> list[Teacher]:
    return choose_teachers(settings, {"OPENAI_API_KEY": "k"})


def asking(header: str = "header", seeds: Any = (TASK,), **given: Any) -> dict[str, Any]:
    settings = resolved(**given)
    return identity.asking(settings, teachers_of(settings), header, seeds)


def now(header: str = "header", seeds: Any = (TASK,), evaluation: Any = (), **given: Any) -> dict[str, Any]:
    return {**asking(header, seeds, **given), **identity.deciding(resolved(**given), evaluation)}


THERE = Header(json.loads(json.dumps(now())))


def refusal(**given: Any) -> str:
    with pytest.raises(OutputError) as raised:
        identity.check_same(THERE, now(**given), Path("out"))
    return str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_instructions_to_generate": 7, "max_in_flight": 3, "request_batch_size": 2, "num_clients": 2},
        {"max_retries": 1, "request_timeout": 3.0, "requests_per_minute": 5, "tokens_per_minute": 7},
        {"max_cost": 1.0, "prices": {"m": [1, 2]}, "max_tokens_total": 5, "max_requests": 5},
        {"num_shards": 3, "num_cpus": 1},
        {"base_url": "http://127.0.0.1:99/v1"},
        {"api_key_env": "OTHER"},
        {"seeds": [{**TASK, "id": "renamed", "avg_similarity_score": 1}]},
    ],
)
def test_what_answers_do_not_depend_on_may_change(given: dict[str, Any]) -> None:
    identity.check_same(THERE, now(**given), Path("out"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"stop": ["x"]}, "stop"),
        ({"seed": 1}, "seed"),
        ({"extra_body": {"reasoning_effort": "low"}}, "extra_body"),
        ({"drop_params": ["top_p"]}, "drop_params"),
        ({"num_prompt_instructions": 2}, "num_prompt_instructions"),
        ({"max_example_words": 9}, "max_example_words"),
        ({"model_name": "other"}, "model_name"),
        ({"base_url": "https://example.org/v1"}, "base_url"),
        ({"api": "chat"}, "api"),
        ({"header": "another header"}, "prompt_header"),
        ({"seeds": [{**TASK, "output": "z"}]}, "seed_tasks_path"),
        ({"endpoints": [f"{URL} model=m", "http://h/v1 model=m"]}, "base_url"),
    ],
)
def test_what_answers_depend_on_makes_another_run(given: dict[str, Any], name: str) -> None:
    said = refusal(**given)
    assert f"--{name} (there " in said
    assert said.startswith("--resume: the journal in out was made with other settings: ")
    assert said.endswith("use the same, or --overwrite to start anew, or another folder")


def test_every_difference_is_named_with_both_values() -> None:
    said = refusal(temperature=0.5, seed=1)
    assert "--seed (there 42, now 1), --temperature (there 1.0, now 0.5);" in said


@pytest.mark.parametrize(
    "given", [{"similarity_threshold": 0.5}, {"tokenizer": "unicode"}, {"similarity_stats": "none"}]
)
def test_what_only_decides_can_be_replayed(given: dict[str, Any]) -> None:
    assert "--replay, which goes through the journal again" in refusal(**given)
    assert "--replay" not in refusal(**given, seed=1), "other answers cannot"


def test_evaluation_sets_are_known_by_their_prompts(tmp_path: Path) -> None:
    header = Header(json.loads(json.dumps(now(evaluation=["a prompt"]))))
    identity.check_same(header, now(evaluation=["a prompt"]), tmp_path)
    for other in (["another prompt"], []):
        with pytest.raises(OutputError, match=r"--decontaminate .*--replay"):
            identity.check_same(header, now(evaluation=other), tmp_path)


def test_the_order_of_endpoints_and_their_weights_do_not_matter() -> None:
    header = Header(now(endpoints=["http://a/v1 model=m weight=2", "http://b/v1 model=n key=OTHER"]))
    identity.check_same(header, now(endpoints=["http://b/v1 model=n", "http://a/v1 model=m"]), Path("out"))
    with pytest.raises(OutputError, match=r"--base_url \(there 'http://a/v1, http://b/v1', now 'http://a/v1'\)"):
        identity.check_same(header, now(endpoints=["http://a/v1 model=m", "http://a/v1 model=n"]), Path("out"))


def test_a_setting_that_one_side_does_not_know_differs() -> None:
    with pytest.raises(OutputError, match=r"--new \(there 1, now None\)"):
        identity.check_same(Header({**THERE.settings, "new": 1}), now(), Path("out"))


def replay(**given: Any) -> None:
    identity.check_replayable(THERE, resolved(**given), asking(**given), Path("out"))


def test_a_replay_takes_what_is_not_given_from_the_journal() -> None:
    header = Header({**THERE.settings, "temperature": 0.3, "seed": 9})
    settings = GenerateSettings.resolve({})
    there = identity.asking(settings, teachers_of(resolved()), "another header", [TASK])
    identity.check_replayable(header, settings, there, Path("out"))


@pytest.mark.parametrize("given", [{"similarity_threshold": 0.1}, {"temperature": 1.0}, {"model_name": "m"}])
def test_what_a_replay_may_be_given(given: dict[str, Any]) -> None:
    replay(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": 0.5}, r"--temperature \(there 1.0, now 0.5\)"),
        ({"extra_body": {"a": [1]}}, r"--extra_body \(there None, now {'a': \[1\]}\)"),
        ({"seeds": [{**TASK, "output": "z"}]}, "--seed_tasks_path"),
    ],
)
def test_a_replay_cannot_change_what_was_asked(given: dict[str, Any], words: str) -> None:
    settings = resolved(**{name: value for name, value in given.items() if name != "seeds"})
    with pytest.raises(OutputError, match=f"--replay: the answers in out were asked for with other settings: {words}"):
        identity.check_replayable(THERE, settings, asking(**given), Path("out"))


def test_the_threshold_of_contamination_decides_where_there_is_an_evaluation_set() -> None:
    identity.check_same(THERE, now(decontaminate_threshold=0.5), Path("out"))
    there = Header(json.loads(json.dumps(now(evaluation=["What is two and two?"]))))
    same = now(evaluation=["What is two and two?"])
    identity.check_same(there, same, Path("out"))
    with pytest.raises(
        OutputError, match=r"--decontaminate_threshold \(there 0\.7, now 0\.5\); use the same, or --replay"
    ):
        identity.check_same(there, {**same, "decontaminate_threshold": 0.5}, Path("out"))
    other = now(evaluation=["What is two and two?"], decontaminate_threshold=0.5)
    assert {name for name in other if other[name] != same[name]} == {"decontaminate_threshold"}


def test_the_journals_settings_survive_json_and_hold_no_key() -> None:
    found = now(extra_body={"a": [1, {"b": None}]}, stop=["x"], drop_params=["top_p"])
    assert json.loads(json.dumps(found)) == found
    assert not set(DECIDING) & set(asking())
    assert "OPENAI_API_KEY" not in json.dumps(found)
