"""DeepSpeed's configuration: completed, held against the flags, and what a resume needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import alpaca_ray
from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.arguments import read_json, translate
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.zero import check_resume, zero_stage

SHIPPED = sorted((Path(alpaca_ray.__file__).parent.parent / "jobs" / "configs").glob("deepspeed_*.json"))


def translated(file: Path, *flags: str) -> dict[str, Any]:
    settings = parse_settings(TrainSettings, ["--full", "--deepspeed", str(file), *flags], description="test")
    values = translate(settings, make_plan(settings, has_gpus=False), "out", has_validation=True)["deepspeed"]
    assert isinstance(values, dict)
    return values


def written(folder: Path, content: Any) -> Path:
    file = folder / "ds.json"
    file.write_text(json.dumps(content))
    return file


def test_a_configuration_is_completed_with_what_follows_from_the_flags(tmp_path: Path) -> None:
    values = translated(written(tmp_path, {"zero_optimization": {"stage": 3}}))
    assert values["zero_optimization"] == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    assert (values["train_batch_size"], values["gradient_clipping"]) == ("auto", "auto")
    assert values["bf16"] == values["fp16"] == {"enabled": "auto"}
    assert zero_stage(values) == 3
    assert zero_stage(None) is None


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_shipped_configurations_are_complete_and_leave_everything_to_the_flags(file: Path) -> None:
    content = read_json("deepspeed", str(file))
    assert translated(file, "--learning_rate", "3e-3", "--batch_size", "24") == content
    assert f"zero{content['zero_optimization']['stage']}" in file.stem
    assert ("offload_optimizer" in content["zero_optimization"]) == file.stem.endswith("offload")


def test_four_configurations_are_shipped() -> None:
    assert len(SHIPPED) == 4


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({}, "zero_optimization.stage must be 0, 1, 2 or 3, and is None"),
        ({"zero_optimization": {"stage": 4}}, "and is 4"),
        ({"zero_optimization": {"stage": True}}, "and is True"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
            "must be true: the model is saved in whole weights",
        ),
        ({"zero_optimization": {"stage": 2}, "bf16": True}, "bf16 must be an object"),
        ({"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}, "--max_grad_norm makes it 1.0"),
        (
            {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 3},
            "--per_device_train_batch_size makes it 8",
        ),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, "fp16.enabled is True, and --fp16 makes it"),
        (
            {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 1}}},
            "optimizer.params.lr is 1, and --learning_rate makes it 0.0005",
        ),
    ],
)
def test_what_contradicts_a_flag_or_would_not_be_saved_whole_is_refused(
    content: Any, part: str, tmp_path: Path
) -> None:
    file = written(tmp_path, content)
    with pytest.raises(SettingsError) as caught:
        translated(file)
    assert part in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": \n oops}')
    with pytest.raises(SettingsError, match="line 2"):
        translated(file)
    with pytest.raises(SettingsError, match="No such file"):
        translated(tmp_path / "gone.json")


def checkpoint(folder: Path, workers: int) -> Path:
    states = folder / "global_step5"
    states.mkdir()
    (folder / "latest").write_text("global_step5")
    for rank in range(workers):
        (states / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    return folder


def test_deepspeeds_state_is_resumed_by_as_many_workers_as_wrote_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    check_resume(folder, deepspeed=True, workers=2)
    with pytest.raises(SettingsError, match=r"written by 2 workers.*--num_workers 2.*--fsdp"):
        check_resume(folder, deepspeed=True, workers=1)
    with pytest.raises(SettingsError, match="was written under DeepSpeed: give --deepspeed"):
        check_resume(folder, deepspeed=False, workers=2)


def test_a_checkpoint_from_elsewhere_is_not_resumed_under_deepspeed(tmp_path: Path) -> None:
    check_resume(tmp_path, deepspeed=False, workers=3)
    with pytest.raises(SettingsError, match="written without DeepSpeed"):
        check_resume(tmp_path, deepspeed=True, workers=3)
