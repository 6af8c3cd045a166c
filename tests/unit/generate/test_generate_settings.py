"""Settings of generation: what the command line and a config file may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.generate import GenerateSettings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--temperature -0.1", "--temperature"),
        ("--temperature nan", "--temperature"),
        ("--top_p 1.2", "--top_p"),
        ("--top_p 0", "--top_p"),
        ("--similarity_threshold 1.5", "--similarity_threshold"),
        ("--num_instructions_to_generate 0", "--num_instructions_to_generate"),
        ("--request_batch_size 0", "--request_batch_size"),
        ("--max_in_flight x", "--max_in_flight"),
        ("--api soap", "--api"),
        ("--num_prompt_instructions 20", "--num_tasks_per_prompt 20 .*must be larger"),
        ("--resume --overwrite", "contradict"),
        ("--resume --replay", "contradict"),
        ("--base_url http://h/v1 --endpoints http://h/v1", "--base_url and --endpoints contradict"),
        ("--drop_params n", "--drop_params n: only temperature, top_p, stop, max_tokens"),
        ("--drop_params max_tokens --max_cost 1", "--max_cost needs a longest answer"),
        ("--drop_params max_tokens --max_tokens_total 1", "--max_tokens_total needs a longest answer"),
        ("--drop_params top_p max_tokens --tokens_per_minute 1", "--tokens_per_minute needs a longest answer"),
        ("--extra_body {", "--extra_body '{': must be"),
        ("--extra_body [1]", "--extra_body '\\[1\\]': must be"),
        ("--extra_body low", "--extra_body 'low': must be"),
        ("--prices 3", "--prices '3': must be"),
        ("--requests_per_minute 0", "--requests_per_minute"),
        ("--requests_per_second -1", "--requests_per_second"),
        ("--tokens_per_minute inf", "--tokens_per_minute"),
        ("--max_cost 0", "--max_cost"),
        ("--max_cost nan", "--max_cost"),
        ("--max_tokens_total 0", "--max_tokens_total"),
        ("--max_requests 0", "--max_requests"),
        ("--max_retries -1", "--max_retries"),
        ("--request_timeout 0", "--request_timeout"),
        ("--stall_timeout 0", "--stall_timeout"),
        ("--num_clients 0", "--num_clients"),
        ("--modelname x", "unknown flag --modelname: did you mean --model_name"),
    ],
)
def test_flags_out_of_range_are_one_line(flags: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        parse_settings(GenerateSettings, flags.split(), description="")
    assert "\n" not in str(raised.value)


def test_the_originals_flags_parse() -> None:
    line = (
        "--output_dir out --seed_tasks_path seed_tasks.jsonl --num_instructions_to_generate 100 --model_name "
        "text-davinci-003 --num_prompt_instructions 3 --request_batch_size 5 --temperature 1.0 --top_p 1.0 --num_cpus 8"
    )
    settings = parse_settings(GenerateSettings, line.split(), description="")
    assert (settings.model_name, settings.num_cpus, settings.max_tokens) == ("text-davinci-003", 8, 3072)


def test_stops_may_be_written_with_escapes() -> None:
    assert GenerateSettings.resolve({"stop": ["\\n20.", "###"]}).stops() == ["\n20.", "###"]
    assert GenerateSettings.resolve({"num_tasks_per_prompt": 20}).stops() == ["\n21. Instruction"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--extra_body", {"reasoning_effort": "low", "deep": {"a": [1, None, True]}}),
        ("--prices", {"my-model": [0.15, 0.6], "other/model": [1, 2]}),
    ],
)
def test_json_in_one_word(tmp_path: Path, flag: str, value: dict[str, Any]) -> None:
    name = flag.removeprefix("--")
    word = json.dumps(value)
    settings = parse_settings(GenerateSettings, [flag, word], description="")
    assert getattr(settings, name) == value
    assert settings.source(name) == "flag"
    assert json.loads(json.dumps(settings.to_dict()))[name] == value
    config = tmp_path / "run.yaml"
    for text in (word, json.dumps(word)):  # YAML's own mapping, or the same word as on the command line
        config.write_text(f"{name}: {text}\n")
        assert getattr(parse_settings(GenerateSettings, ["--config", str(config)], description=""), name) == value
    assert getattr(parse_settings(GenerateSettings, [flag, "none"], description=""), name) is None


def test_endpoints_are_words_in_quotes() -> None:
    given = ["--endpoints", "http://a/v1 weight=2 key=A", "http://b/v1", "--drop_params", "top_p", "stop"]
    settings = parse_settings(GenerateSettings, given, description="")
    assert settings.endpoints == ["http://a/v1 weight=2 key=A", "http://b/v1"]
    assert settings.drop_params == ["top_p", "stop"]
