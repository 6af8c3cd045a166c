"""Runs on two workers of which one is lost, sharded runs that move to fewer and back, and what a sharded base saves."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_survival import assert_same_weights, killed_at, losses, run

from alpaca_ray.records import read_records
from alpaca_ray.train.progress import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def flags(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """22 records, four steps an epoch, the last one smaller."""
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:22]
    data = tmp_path_factory.mktemp("data") / "data.json"
    data.write_text(json.dumps([{k: r[k] for k in ("instruction", "input", "output")} for r in records]))
    text = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 0 --no_bf16 --logging_steps 1 --threads 1 "
        "--batch_size 6 --eval_strategy no --save_total_limit 2"
    )
    return text.split()


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder) if "loss" in row]


@pytest.mark.slow
def test_one_of_two_workers_killed_at_a_random_step_costs_no_bit_of_the_result(
    flags: list[str], tmp_path: Path
) -> None:
    """Dropout is on: both workers' random states go on where they were."""
    long = [*flags, "--num_workers", "2", "--max_steps", "80", "--save_steps", "7", "--learning_rate", "0.02"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert run(*long, "--output_dir", undisturbed)["wrapper"] == "DistributedDataParallel"
    step = random.randrange(8, 40)
    with killed_at(killed, step) as victims:
        content = run(*long, "--output_dir", killed)
    assert victims, f"nobody was killed at step {step}"
    assert content["steps"] == 80
    assert steps(killed) == list(range(1, 81)), f"killed at step {step}"
    assert losses(killed) == losses(undisturbed), f"killed at step {step}"
    assert_same_weights(killed, undisturbed)
    assert sorted(path.name for path in killed.glob("checkpoint-*")) == ["checkpoint-77", "checkpoint-80"]


@pytest.mark.slow
def test_a_fully_sharded_run_moves_from_two_workers_to_one_and_back(flags: list[str], tmp_path: Path) -> None:
    """The optimiser's moments move along: without them the first step after a move would already be another one."""
    full = [*flags, "--full", "--fsdp", "full_shard", "--lr_scheduler_type", "constant", "--learning_rate", "0.003"]
    full += ["--save_steps", "3"]
    undisturbed, moved = tmp_path / "undisturbed", tmp_path / "moved"
    run(*full, "--num_workers", "2", "--max_steps", "9", "--output_dir", undisturbed)
    for workers, last in ((2, 3), (1, 6), (2, 9)):
        more = ["--resume"] if last > 3 else []
        content = run(*full, "--num_workers", str(workers), "--max_steps", str(last), "--output_dir", moved, *more)
        assert (content["steps"], content["wrapper"]) == (last, "FSDPLlamaForCausalLM")
        assert (moved / f"checkpoint-{last}" / "sharded").is_dir()
    assert steps(moved) == list(range(1, 10))
    assert losses(undisturbed)[-1] < losses(undisturbed)[0] - 0.1
    assert losses(moved) == pytest.approx(losses(undisturbed), abs=1e-5)
    expected = load_file(undisturbed / "model.safetensors")
    for name, weight in load_file(moved / "model.safetensors").items():
        assert torch.allclose(weight, expected[name], atol=1e-4), name


@pytest.mark.slow
def test_an_adapter_saved_from_a_sharded_base_is_whole_and_loads_over_a_base_that_is_not(
    flags: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # Three ranks over two workers: rows are divided unevenly.
    more = ["--fsdp", "full_shard", "--num_workers", "2", "--max_steps", "2", "--lora_r", "3", "--lora_dropout", "0"]
    content = run(*flags, *more, "--learning_rate", "0.02", "--save_steps", "2", "--output_dir", tmp_path / "out")
    assert content["wrapper"] == "FSDPPeftModelForCausalLM"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, tmp_path / "out")
    named = {n.replace(".default", ""): part for n, part in model.named_parameters() if "lora_" in n}
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert saved.keys() == named.keys()
    assert content["trainable_parameters"] == sum(weight.numel() for weight in saved.values())
    for name, weight in saved.items():
        assert weight.shape == named[name].shape, name
        assert weight.abs().amax(dim=1).min() > 0, name  # no row that nobody wrote
        assert torch.equal(weight, named[name]), name
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), model.disable_adapter():
        before = model(input_ids=ids).logits
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
