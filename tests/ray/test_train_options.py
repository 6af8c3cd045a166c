"""Training options in whole runs: noise, 8-bit optimisers, schedules, LoRA variants, trackers, and how jobs end."""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from train_runs import Runs

import alpaca_ray
from alpaca_ray.testing.tiny import make_tiny_model
from alpaca_ray.train.progress import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

JOB = Path(alpaca_ray.__file__).parent.parent / "jobs" / "train.py"
RESTARTS = ["--lr_scheduler_type", "cosine_with_restarts", "--lr_scheduler_kwargs", '{"num_cycles": 2}']
NOISY = ["--full", "--max_steps", "6", "--learning_rate", "1e-3", "--neftune_noise_alpha", "5", *RESTARTS]
SAVING = ["--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "9"]


@pytest.fixture(scope="module")
def runs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of a model whose layers are large enough for 8-bit states."""
    folder = tmp_path_factory.mktemp("options")
    return Runs(make_tiny_model(folder / "wide", "llama", width=64), folder)


@pytest.fixture(scope="module")
def noisy(runs: Runs) -> Path:
    """Full fine-tuning with noise and an 8-bit optimiser, watched by tensorboard."""
    runs.run("noisy", *NOISY, *SAVING, "--optim", "adamw_8bit", "--report_to", "tensorboard")
    return runs.folder / "noisy"


@pytest.fixture(scope="module")
def resumed(runs: Runs, noisy: Path) -> Path:
    """The same run, killed after its last step, gone on from step 3; with every tracker there is."""
    folder = runs.folder / "resumed"
    folder.mkdir()
    for name in ("checkpoint-3", "trackers"):
        shutil.copytree(noisy / name, folder / name)
    shutil.copy(noisy / "metrics.jsonl", folder)
    runs.run("resumed", *NOISY, *SAVING, "--optim", "adamw_8bit", "--report_to", "all", "--resume")
    return folder


def test_an_8_bit_optimiser_and_noise_resume_bit_by_bit(runs: Runs, noisy: Path, resumed: Path) -> None:
    state = torch.load(noisy / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    kinds = Counter(held["state1"].dtype for part in state.values() for held in part.values() if isinstance(held, dict))
    assert kinds[torch.uint8] >= 6  # the feed-forward layers of both blocks; smaller ones and embeddings keep 32 bits
    assert kinds[torch.float32] >= 1
    assert len(runs.losses("noisy")) == 6
    assert runs.losses("resumed") == runs.losses("noisy")
    undisturbed = runs.weights("noisy")
    for name, weight in runs.weights("resumed").items():
        assert torch.equal(weight, undisturbed[name]), name


def test_noise_is_in_the_loss_and_not_in_the_model(runs: Runs, noisy: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(runs.base)
    saved = AutoModelForCausalLM.from_pretrained(noisy)
    assert saved.state_dict().keys() == base.state_dict().keys()
    content = json.loads((noisy / "run.json").read_text())
    assert content["packing"] == "borders"
    # Validation is taken without noise: the models before and after give the losses that were reported.
    assert runs.loss_of(base.eval(), "noisy") == pytest.approx(content["validation_loss_before"], abs=1e-4)
    assert runs.loss_of(saved.eval(), "noisy") == pytest.approx(content["validation_loss_after"], abs=1e-4)


def test_a_schedule_takes_its_options_from_a_flag(noisy: Path) -> None:
    rates = [row["learning_rate"] for row in read_metrics(noisy) if "loss" in row]
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * (2 * step / 6 % 1))) for step in range(6)]
    assert rates == pytest.approx(expected, rel=1e-6)  # down, and from the top again in the middle


def events(folder: Path) -> list[Any]:
    """Tensorboard's events, in the order in which it reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        position = 0
        while position < len(content):
            size = struct.unpack_from("<Q", content, position)[0]
            found.append(Event.FromString(content[position + 12 : position + 12 + size]))
            position += 16 + size
    return found


def test_tensorboard_shows_each_step_once_after_a_resume(noisy: Path, resumed: Path) -> None:
    folder = resumed / "trackers" / "tensorboard"
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    assert len(list((noisy / "trackers" / "tensorboard").iterdir())) == 1  # the last validation is in it, too
    written: list[int] = []
    validated: list[int] = []
    shown: list[tuple[int, float]] = []
    for event in events(folder):
        if event.HasField("session_log"):  # tensorboard's rule: a start hides what stands at this step and later
            shown = [(step, value) for step, value in shown if step < event.step]
        for value in event.summary.value:
            if value.tag == "eval/loss":
                validated.append(event.step)
            if value.tag == "train/loss":
                written.append(event.step)
                shown.append((event.step, value.simple_value))
    assert written == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert validated == [0, 6, 6]
    assert [step for step, _ in shown] == [1, 2, 3, 4, 5, 6]
    losses = [row["loss"] for row in read_metrics(noisy) if "loss" in row]
    assert [value for _, value in shown] == pytest.approx(losses, rel=1e-6)


def test_lora_variants_stand_in_the_adapter_and_in_what_it_gives(runs: Runs) -> None:
    flags = (
        "--use_dora --use_rslora --lora_r 4 --lora_alpha 16 --lora_dropout 0.1 --gradient_checkpointing --max_steps 4 "
        "--optim paged_adamw_8bit --lr_scheduler_type warmup_stable_decay"
    )
    content = runs.run("dora", *flags.split(), "--lr_scheduler_kwargs", '{"num_decay_steps": 2}')
    config = json.loads((runs.folder / "dora" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["r"], config["lora_alpha"]) == (True, True, 4, 16)
    saved = runs.weights("dora")
    assert sum(name.endswith("lora_magnitude_vector") for name in saved) == 14  # seven layers, two blocks
    assert content["trainable_parameters"] == sum(weight.numel() for weight in saved.values())
    assert content["validation_loss_after"] < content["validation_loss_before"]
    # Plain peft, which divides by the root of the rank where the configuration says so.
    assert runs.validation_loss("dora") == pytest.approx(content["validation_loss_after"], abs=1e-4)
    rates = [row["learning_rate"] for row in read_metrics(runs.folder / "dora") if "loss" in row]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 0.5e-2], rel=1e-6)


def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, list[str]]:
    """Run jobs/train.py in this process; return its exit code and the lines that say what went wrong."""
    monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, flags)])
    capsys.readouterr()
    code = 0
    try:
        runpy.run_path(str(JOB), run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


DIVERGING = """
--full --optim sgd --learning_rate 1e30 --warmup_steps 1 --max_grad_norm 0 --no_bf16 --batch_size 4 --max_steps 9
--val_set_size 0 --save_steps 1 --save_total_limit 9 --threads 1
""".split()  # noqa: SIM905


def assert_stopped_for_its_loss(folder: Path, code: int, errors: list[str]) -> None:
    from safetensors.torch import load_file

    assert code == 1
    (error,) = errors
    row = read_metrics(folder)[-1]
    assert f"at step {row['step']}: training stopped; its samples: {', '.join(row['sample_ids'])}; " in error
    assert len(row["sample_ids"]) == 4
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert checkpoints == [f"checkpoint-{step}" for step in range(1, row["step"])]
    assert f"the last good checkpoint is {folder / checkpoints[-1]}." in error
    for checkpoint in checkpoints:
        weights = load_file(folder / checkpoint / "model.safetensors")
        assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert not (folder / "run.json").exists()


def too_long(folder: Path) -> list[str]:
    """Data and flags of a run in which every prompt fills the limit."""
    file = folder / "long.json"
    file.write_text(json.dumps([{"instruction": "word " * 99, "output": "never"}] * 6))
    return ["--data_path", str(file), "--model_max_length", "64"]


def test_data_that_is_too_long_ends_the_job_with_one_line_and_leaves_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", runs.base, "--output_dir", tmp_path / "out", *too_long(tmp_path)]
    code, errors = job(monkeypatch, capsys, *flags)
    message = "error: no record has a response token within --model_max_length 64: every prompt is longer than that"
    assert (code, errors) == (2, [message])
    assert [path.name for path in tmp_path.iterdir()] == ["long.json"]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--lr_scheduler_type cosin", "--lr_scheduler_type cosin: did you mean cosine? There are linear, cosine"),
        ("--optim adamw_torch_8bit", "--optim adamw_torch_8bit: "),
        ('--lr_scheduler_type polynomial --lr_scheduler_kwargs {"powers":2}', "unexpected keyword argument 'powers'"),
        ("--neftune_noise_alpha high", "--neftune_noise_alpha high: must be a number"),
        ("--lora_r 0", "--lora_r '0'"),
        ("--full --load_4bit", "--full with --load_4bit"),
    ],
)
def test_an_option_that_cannot_be_is_one_line_and_exit_code_2(
    flags: str,
    part: str,
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from alpaca_ray.train import runner

    monkeypatch.setattr(runner, "launch", None)  # no worker may start
    given = ["--model", runs.base, "--data_path", runs.data, "--output_dir", tmp_path / "out", *flags.split()]
    code, errors = job(monkeypatch, capsys, *given)
    assert code == 2
    assert len(errors) == 1
    assert part in errors[0]
    assert not (tmp_path / "out").exists()


def command(*flags: object) -> tuple[int, list[str]]:
    """Run jobs/train.py as a user does, with a cluster of its own."""
    environment = {**os.environ, "PYTHONPATH": str(JOB.parent.parent)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(JOB), *map(str, flags)], capture_output=True, text=True, timeout=280, env=environment
    )
    assert "Traceback" not in done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_the_command_itself_ends_so(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, errors = command("--model", runs.base, "--output_dir", folder, *too_long(tmp_path))
    assert (code, len(errors)) == (2, 1)
    assert not folder.exists()
    code, errors = command("--model", runs.base, "--data_path", runs.data, "--output_dir", folder, *DIVERGING)
    assert_stopped_for_its_loss(folder, code, errors)
