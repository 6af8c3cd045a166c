"""Resumes from folders in which something is missing, cut off or unreadable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError, SettingsError, TrainingError
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import whole
from alpaca_ray.train.progress import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def run(*flags: str | Path) -> dict[str, Any]:
    from alpaca_ray.train.runner import train

    result = train(parse_settings(TrainSettings, [str(flag) for flag in flags], description="test"))
    assert result is not None
    return result


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.fixture(scope="module")
def flags(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:12]
    data = tmp_path_factory.mktemp("data") / "data.json"
    data.write_text(json.dumps([{k: r[k] for k in ("instruction", "input", "output")} for r in records]))
    text = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 0 --no_bf16 --logging_steps 1 --threads 1 "
        "--learning_rate 0.02 --batch_size 4 --max_steps 6 --save_steps 3"
    )
    return text.split()


def test_a_resume_passes_over_a_broken_checkpoint_and_publishes_again_what_is_gone(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kept = tmp_path / "out", tmp_path / "kept.safetensors"
    run(*flags, "--output_dir", folder)
    before = read_metrics(folder)
    shutil.move(folder / "adapter_model.safetensors", kept)
    cut(folder / "checkpoint-6" / "optimizer.pt")
    capsys.readouterr()
    content = run(*flags, "--output_dir", folder, "--resume")
    text = capsys.readouterr().out
    assert f"warning: passing over {folder / 'checkpoint-6'}: optimizer.pt has " in text
    assert f"Restarting from {folder / 'checkpoint-3'}" in text
    assert content["steps"] == 6
    assert [row["loss"] for row in read_metrics(folder)] == [row["loss"] for row in before]
    assert (folder / "adapter_model.safetensors").read_bytes() == kept.read_bytes()
    assert whole.fault(folder / "checkpoint-6") is None

    for step in (3, 6):
        (folder / f"checkpoint-{step}" / "adapter_model.safetensors").unlink()
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole \(.*checkpoint-6: adapter_model"):
        run(*flags, "--max_steps", "9", "--output_dir", folder, "--resume")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == names


@pytest.mark.slow
def test_sharded_state_that_cannot_be_read_ends_on_both_workers_and_fsdp_is_not_forgotten(
    flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    sharded = [*flags, "--full", "--fsdp", "full_shard auto_wrap", "--num_workers", "2", "--output_dir", str(folder)]
    run(*sharded)
    checkpoint = folder / "checkpoint-6"
    assert (checkpoint / whole.LIST_FILE).is_file()
    (checkpoint / whole.LIST_FILE).unlink()
    assert whole.fault(checkpoint) is None
    longer = ["--max_steps", "8", "--resume"]
    plain = [flag for flag in sharded if flag not in ("--fsdp", "full_shard auto_wrap")]
    (folder / "train_identity.json").unlink()  # as in a run of an earlier version, which did not record it
    with pytest.raises(SettingsError, match="was written under FSDP: give --fsdp"):
        run(*plain, *longer)
    for part in (checkpoint / whole.SHARDED_FOLDER).glob("*.distcp"):
        part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(TrainingError) as caught:
        run(*sharded, *longer)
    assert str(caught.value).startswith(f"{checkpoint}: cannot be read: ")
    assert "\n" not in str(caught.value)
