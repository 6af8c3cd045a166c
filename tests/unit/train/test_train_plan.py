"""What depends on the machine: precision, batches, and the translation to TrainingArguments."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.arguments import check, check_trackers, translate
from alpaca_ray.train.plan import Plan, make_plan


def parse(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, list(flags), description="test")


def plan(*flags: str, has_gpus: bool = False) -> Plan:
    return make_plan(parse(*flags), has_gpus=has_gpus)


def translated(*flags: str, has_gpus: bool = False, has_validation: bool = True) -> dict[str, Any]:
    settings = parse(*flags)
    return translate(settings, make_plan(settings, has_gpus=has_gpus), "out", has_validation=has_validation)


def test_default_fp16_becomes_bf16_on_the_cpu_with_a_warning() -> None:
    made = plan("--base_model", "m")
    assert made.precision == "bf16"
    assert any("fp16" in line for line in made.warnings)
    assert plan("--base_model", "m", has_gpus=True).precision == "fp16"


def test_fp16_asked_for_by_name_is_an_error_on_the_cpu() -> None:
    with pytest.raises(SettingsError, match="--fp16 needs a GPU"):
        plan("--base_model", "m", "--fp16")


@pytest.mark.parametrize("flags", [["--lora_r", "4"], ["--lora_target_modules", "[q_proj]"]])
def test_full_fine_tuning_with_an_adapters_flag_is_an_error(flags: list[str]) -> None:
    with pytest.raises(SettingsError, match=f"--full and {flags[0]} contradict"):
        plan("--full", *flags)


def test_tf32_without_a_gpu_is_a_warning() -> None:
    made = plan("--tf32", "True")
    assert made.tf32 is None
    assert any("--tf32" in line for line in made.warnings)


def test_stanfords_dialect_without_a_precision_flag_computes_in_float32() -> None:
    assert plan("--model_name_or_path", "m").precision == "fp32"


@pytest.mark.parametrize(
    ("flags", "accumulation"),
    [
        (["--base_model", "m"], 32),
        (["--base_model", "m", "--num_workers", "2"], 16),
        (["--base_model", "m", "--batch_size", "16", "--micro_batch_size", "8"], 2),
        (["--base_model", "m", "--gradient_accumulation_steps", "3"], 3),
        (["--model_name_or_path", "m", "--gradient_accumulation_steps", "8"], 8),
        (["--batch_size", "32"], 4),
        ([], 1),
    ],
)
def test_accumulation_is_the_global_batch_over_micro_batch_and_workers(flags: list[str], accumulation: int) -> None:
    assert plan(*flags).accumulation == accumulation


@pytest.mark.parametrize(
    "flags",
    [
        ["--base_model", "m", "--batch_size", "10", "--micro_batch_size", "4"],
        ["--base_model", "m", "--batch_size", "4", "--micro_batch_size", "4", "--num_workers", "2"],
        ["--batch_size", "32", "--gradient_accumulation_steps", "2"],
    ],
)
def test_an_impossible_split_is_an_error(flags: list[str]) -> None:
    with pytest.raises(SettingsError, match="--batch_size"):
        plan(*flags)


def test_a_micro_batch_that_was_not_given_adapts_to_the_batch() -> None:
    assert [plan("--batch_size", size).micro_batch for size in ("4", "12", "7", "32")] == [4, 6, 7, 8]
    with pytest.raises(SettingsError, match="--num_workers 2"):
        plan("--batch_size", "7", "--num_workers", "2")


def test_old_names_become_the_installed_ones() -> None:
    values = translated("--warmup_ratio", "0.1", "--evaluation_strategy", "steps", "--eval_steps", "7")
    assert (values["warmup_steps"], values["eval_strategy"], values["eval_steps"]) == (0.1, "steps", 7)
    assert translated("--warmup_ratio", "0.1", "--warmup_steps", "20")["warmup_steps"] == 20


def test_fsdp_options_become_fsdp2s() -> None:
    flags = ["--fsdp", "full_shard auto_wrap offload", "--fsdp_transformer_layer_cls_to_wrap", "OPTDecoderLayer"]
    values = translated(*flags, "--num_workers", "2")
    assert values["fsdp"] is True
    assert values["fsdp_config"] == {
        "version": 2,
        "reshard_after_forward": True,
        "cpu_offload": True,
        "transformer_layer_cls_to_wrap": ["OPTDecoderLayer"],
    }
    assert translated("--fsdp", "shard_grad_op")["fsdp_config"]["reshard_after_forward"] is False
    with pytest.raises(SettingsError, match="full_shrad"):
        translated("--fsdp", "full_shrad auto_wrap")


def test_retired_fields_warn_and_do_not_reach_the_library() -> None:
    assert any("--logging_dir" in line for line in plan("--logging_dir", "logs").warnings)
    assert "logging_dir" not in translated("--logging_dir", "logs")


def test_validation_asked_for_without_held_out_records_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--val_set_size"):
        translated("--evaluation_strategy", "steps", "--val_set_size", "0", has_validation=False)
    assert translated("--val_set_size", "0", has_validation=False)["eval_strategy"] == "no"


def test_passed_through_fields_reach_the_library() -> None:
    assert translated("--max_grad_norm", "0.3")["max_grad_norm"] == 0.3


@pytest.mark.parametrize("flags", [["--lr_scheduler_type", "cosin"], ["--optim", "adamm"], ["--eval_steps", "2.5"]])
def test_what_only_the_library_can_judge_is_judged_before_anything_is_loaded(flags: list[str]) -> None:
    check(translated())
    with pytest.raises(SettingsError):
        check(translated(*flags, "--evaluation_strategy", "steps"))


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(SettingsError, match="no_such_tracker"):
        check_trackers(["no_such_tracker"])
    made = plan("--base_model", "m", "--wandb_project", "p")
    assert (made.trackers, made.wandb_project) == (["wandb"], "p")


def test_a_wandb_project_in_the_environment_counts_in_alpaca_loras_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    made = plan("--base_model", "m")
    assert (made.trackers, made.wandb_project) == ([], None)
    assert any("WANDB_PROJECT" in line for line in made.warnings)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert (plan("--base_model", "m").trackers, plan("--base_model", "m").wandb_project) == (["wandb"], "p")
    assert plan("--base_model", "m", "--report_to", "none").trackers == []
    assert plan("--model", "m").trackers == plan("--model_name_or_path", "m").trackers == []


def test_a_short_run_of_ours_logs_its_first_step() -> None:
    assert translated()["logging_first_step"] is True
    assert translated("--logging_first_step", "False")["logging_first_step"] is False
    assert translated("--base_model", "m")["logging_first_step"] is False
