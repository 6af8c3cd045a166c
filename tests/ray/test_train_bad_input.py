"""Bad input to jobs/train.py, as a user meets it: one line, exit code 2, no output folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import alpaca_ray

JOB = Path(alpaca_ray.__file__).parent.parent / "jobs" / "train.py"

pytestmark = pytest.mark.ray  # one of the cases starts a cluster of its own


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(JOB.parent.parent)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, str(JOB), *flags], cwd=folder, capture_output=True, text=True, timeout=250, env=environment
    )


CASES = {
    "a missing file": (["--data_path", "nowhere.json"], "nowhere.json: no such file"),
    "a JSON error": (["--data_path", "broken.json"], "broken.json, line 2"),
    "a record without an instruction": (["--data_path", "poor.json"], "record 1: has no 'instruction'"),
    "empty data": (["--data_path", "empty.json"], "empty.json: holds no records"),
    "an unknown flag": (["--lerning_rate", "1"], "unknown flag --lerning_rate: did you mean --learning_rate?"),
    "a path without a model": (["--model", "void"], "--model void: the folder holds no model"),
    "a model that is no more": (["--base_model", "decapoda-research/llama-7b-hf"], "huggyllama/llama-7b"),
    "too large a validation set": (["--val_set_size", "5000"], "--val_set_size 5000"),
    "a missing checkpoint": (["--resume_from_checkpoint", "gone"], "Checkpoint gone not found"),
    "a used folder": (["--output_dir", "used"], "already holds train_settings.yaml: give --resume"),
    "somebody's model": (["--output_dir", "theirs", "--resume"], "which no run of this program wrote"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[\n{"instruction": }\n]')
    (tmp_path / "poor.json").write_text('[{"instruction": "a", "output": "b"}, {"output": "c"}]')
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "void").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "train_settings.yaml").write_text("{}")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    flags, message = CASES[case]
    done = run(tmp_path, *flags)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_help_is_complete_and_needs_no_heavy_import(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    for flag in (
        "--base_model",
        "--model_name_or_path",
        "--num_workers",
        "--lora_r",
        "--micro_batch_size",
        "--dry_run",
    ):
        assert flag in done.stdout
