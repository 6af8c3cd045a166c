"""--resume goes on with the same run only; the saved settings start the same run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpaca_ray.errors import OutputError
from alpaca_ray.prompts import load_template
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.arguments import translate
from alpaca_ray.train.data import split
from alpaca_ray.train.identity import check_same_run, identity, write
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.saved import given_yaml, resolved_yaml

RECORDS = read_records("seeds")[:40]


def parse(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, list(flags), description="test")


def identify(*flags: str, records: list[dict[str, Any]] = RECORDS) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings = parse(*flags)
    parts = split(records, settings.val_set_size, seed=settings.seed)
    template = load_template(settings.prompt_template)
    made = identity(settings, make_plan(settings, has_gpus=False), template, parts, settings.model_name)
    return made, parts[1]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    write(tmp_path, identify("--batch_size", "8")[0])
    return tmp_path


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--num_workers", "2"],
        ["--max_steps", "3", "--logging_steps", "1", "--save_steps", "2"],
        ["--num_train_epochs", "9"],
        ["--per_device_train_batch_size", "2"],
    ],
)
def test_what_may_change_may_change(recorded: Path, flags: list[str]) -> None:
    check_same_run(recorded, *identify("--batch_size", "8", *flags))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--model", "other/model"], "--model: embedded there, other/model now"),
        (["--seed", "7"], "--seed: 42 there, 7 now"),
        (["--val_set_size", "5"], "--val_set_size: 0.1 there, 5.0 now"),
        (["--lora_r", "4"], "--lora_r: 8 there, 4 now"),
        (["--full"], "mode: lora there, full now"),
        (["--batch_size", "4"], "--batch_size: 8 there, 4 now"),
        (["--model_max_length", "64"], "--model_max_length: 512 there, 64 now"),
        (["--prompt_template", "alpaca"], "--prompt_template: digest"),
        (["--load_4bit"], "base_bits: None there, 4 now"),
    ],
)
def test_another_run_is_refused_with_both_values(recorded: Path, flags: list[str], part: str) -> None:
    given = flags if "--batch_size" in flags else ["--batch_size", "8", *flags]
    with pytest.raises(OutputError) as caught:
        check_same_run(recorded, *identify(*given))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_data_is_refused_even_under_the_same_ids(recorded: Path) -> None:
    changed = [{**RECORDS[0], "output": "changed"}, *RECORDS[1:]]
    for records in (changed, RECORDS[:39], RECORDS[::-1]):
        with pytest.raises(OutputError, match="digest"):
            check_same_run(recorded, *identify("--batch_size", "8", records=records))


def test_a_folder_without_an_identity_is_judged_by_its_held_out_records(tmp_path: Path) -> None:
    made, heldout = identify()
    check_same_run(tmp_path, made, heldout)
    (tmp_path / "heldout_ids.json").write_text(json.dumps([record["id"] for record in heldout]))
    check_same_run(tmp_path, made, heldout)
    with pytest.raises(OutputError, match="held-out records"):
        check_same_run(tmp_path, *identify("--seed", "7"))


ROUND_TRIPS = [
    [],
    ["--base_model", "m"],
    ["--base_model", "m", "--val_set_size", "0"],
    ["--base_model", "m", "--gradient_accumulation_steps", "3"],
    ["--model_name_or_path", "m"],
    ["--model_name_or_path", "m", "--lora_r", "4"],
    ["--model_name_or_path", "m", "--evaluation_strategy", "no", "--save_total_limit", "1"],
    ["--model", "m", "--batch_size", "32"],
    ["--model", "m", "--batch_size", "12", "--num_workers", "2"],
    ["--val_set_size", "0"],
    ["--save_total_limit", "none"],
    ["--full", "--max_grad_norm", "0.3", "--logging_dir", "logs"],
    ["--use_gpu", "false", "--report_to", "none", "--lora_target_modules", "q_proj,v_proj"],
]


@pytest.mark.parametrize("has_gpus", [False, True])
@pytest.mark.parametrize("flags", ROUND_TRIPS, ids=" ".join)
def test_the_saved_settings_start_the_same_run_again(flags: list[str], has_gpus: bool, tmp_path: Path) -> None:
    file = tmp_path / "train_settings.yaml"
    before = parse(*flags)
    file.write_text(given_yaml(before))
    after = parse("--config", str(file))
    assert {**after.to_dict(), "model": None} == {**before.to_dict(), "model": None}
    assert after.model_name == before.model_name
    plans = [make_plan(settings, has_gpus=has_gpus) for settings in (before, after)]
    assert plans[0] == plans[1]
    translated = [
        translate(settings, plan, "out", has_validation=settings.val_set_size > 0)
        for settings, plan in zip((before, after), plans, strict=True)
    ]
    assert translated[0] == translated[1]


def test_the_resolved_settings_show_every_value() -> None:
    shown = yaml.safe_load(resolved_yaml(parse("--base_model", "m", "--max_grad_norm", "0.3")))
    assert (shown["learning_rate"], shown["batch_size"], shown["max_grad_norm"]) == (3e-4, 128, 0.3)
