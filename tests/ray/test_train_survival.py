"""Runs that are killed, resumed and moved between workers, against runs that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.progress import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def run(*flags: str | Path) -> dict[str, Any]:
    from alpaca_ray.train.runner import train

    result = train(parse_settings(TrainSettings, [str(flag) for flag in flags], description="test"))
    assert result is not None
    return result


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def assert_same_weights(one: Path, other: Path) -> None:
    import torch
    from safetensors.torch import load_file

    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


@pytest.fixture(scope="module")
def flags(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """LoRA with dropout on 22 records, four steps an epoch, the last one smaller."""
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:22]
    data = tmp_path_factory.mktemp("data") / "data.json"
    data.write_text(json.dumps([{k: r[k] for k in ("instruction", "input", "output")} for r in records]))
    text = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 0 --no_bf16 --logging_steps 1 --threads 1 "
        "--learning_rate 0.02 --batch_size 6 --save_total_limit 2"
    )
    return text.split()


@contextmanager
def killed_at(folder: Path, step: int) -> Iterator[list[int]]:
    """Kill one of this test's training workers once the run in ``folder`` has logged a step; yields whom."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            if not any(row["step"] >= step for row in read_metrics(folder)):
                continue
            children = psutil.Process().children(recursive=True)
            if workers := [process.pid for process in children if process.name().startswith("ray::RayTrainWo")]:
                killed.append(random.choice(workers))
                os.kill(killed[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def test_a_worker_killed_at_a_random_step_costs_no_bit_of_the_result(flags: list[str], tmp_path: Path) -> None:
    long = [*flags, "--max_steps", "90", "--save_steps", "7", "--eval_strategy", "no"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(*long, "--output_dir", undisturbed)
    step = random.randrange(8, 50)
    with killed_at(killed, step) as victims:
        content = run(*long, "--output_dir", killed)
    assert victims, f"nobody was killed at step {step}"
    assert content["steps"] == 90
    assert losses(killed) == losses(undisturbed), f"killed at step {step}"
    assert_same_weights(killed, undisturbed)
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-84", "checkpoint-90"]
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_run_moves_from_two_workers_to_one_to_four_and_sees_each_sample_once_an_epoch(
    flags: list[str], tmp_path: Path
) -> None:
    constant = [*flags, "--lr_scheduler_type", "constant", "--lora_dropout", "0", "--record_samples"]
    undisturbed, moved = tmp_path / "undisturbed", tmp_path / "moved"
    run(*constant, "--max_steps", "12", "--output_dir", undisturbed)
    for workers, steps in ((2, 3), (1, 7), (4, 12)):
        more = ["--resume"] if workers != 2 else []
        content = run(*constant, "--num_workers", str(workers), "--max_steps", str(steps), "--output_dir", moved, *more)
        assert content["steps"] == steps
    rows = read_metrics(moved, "samples.jsonl")
    assert [len({row["worker"] for row in rows if row["step"] == step}) for step in (3, 7, 12)] == [2, 1, 4]
    ids = {record["id"] for record in read_records(flags[flags.index("--data_path") + 1])}
    assert len(ids) == 22
    for epoch in range(3):
        seen = Counter(i for row in rows if epoch * 4 < row["step"] <= (epoch + 1) * 4 for i in row["ids"])
        assert seen == Counter(ids)
    assert losses(moved) == pytest.approx(losses(undisturbed), abs=1e-4)


def test_a_run_killed_between_its_last_checkpoint_and_its_publication_takes_no_step_more(
    flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run(*flags, "--max_steps", "6", "--output_dir", folder)
    whole = tmp_path / "whole"
    folder.rename(whole)
    folder.mkdir()
    for name in ("checkpoint-6", "metrics.jsonl", "train_identity.json", "heldout_ids.json"):
        (whole / name).rename(folder / name)
    content = run(*flags, "--max_steps", "6", "--output_dir", folder, "--resume")
    assert content["steps"] == 6
    assert [row["step"] for row in read_metrics(folder) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(folder, whole)


def test_an_overwriting_run_that_fails_before_its_first_step_is_taken_leaves_the_old_one(
    flags: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken, folder = tmp_path / "broken", tmp_path / "out"
    shutil.copytree(tiny_llama, broken)
    weights = load_file(broken / "model.safetensors")
    next(weight for name, weight in weights.items() if "q_proj" in name).fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (folder / "checkpoint-9").mkdir(parents=True)
    old = ("adapter_model.safetensors", "metrics.jsonl", "train_settings.yaml", "checkpoint-9/trainer_state.json")
    for name in old:
        (folder / name).write_text("old")
    flags = [str(broken) if flag == str(tiny_llama) else flag for flag in flags]
    with pytest.raises(AlpacaRayError):
        run(*flags, "--max_steps", "3", "--output_dir", folder, "--overwrite")
    assert {path.name for path in folder.iterdir()} == {name.split("/")[0] for name in old}
    assert all((folder / name).read_text() == "old" for name in old)
