"""Training on two workers: what wraps the model, which weights learn, and that every way takes the same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_runs import Runs

import alpaca_ray
from alpaca_ray.errors import SettingsError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CONFIGS = Path(alpaca_ray.__file__).parent.parent / "jobs" / "configs"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ZERO3 = ["--deepspeed", str(CONFIGS / "deepspeed_zero3.json")]


@pytest.fixture(scope="module")
def runs(ray_cluster: None, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_llama, tmp_path_factory.mktemp("modes"))


@pytest.fixture(scope="module")
def one_worker(runs: Runs) -> list[float]:
    """The losses of full fine-tuning on one worker."""
    assert runs.full("one")["wrapper"] == "LlamaForCausalLM"
    losses = runs.losses("one")
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.1
    return losses


@pytest.mark.parametrize(
    ("name", "wrapper", "flags"),
    [
        ("ddp", "DistributedDataParallel", []),
        ("fsdp", "FSDPLlamaForCausalLM", ["--fsdp", "full_shard auto_wrap"]),
        ("zero3", "DeepSpeedEngine", ZERO3),
    ],
)
def test_full_fine_tuning_takes_the_steps_of_one_worker(
    name: str, wrapper: str, flags: list[str], runs: Runs, one_worker: list[float]
) -> None:
    content = runs.full(name, "--num_workers", "2", *flags)
    assert content["wrapper"] == wrapper
    assert content["trainable_parameters"] == content["parameters"]
    assert runs.losses(name) == pytest.approx(one_worker, abs=1e-4)
    saved, expected, base = runs.weights(name), runs.weights("one"), load_base(runs.base)
    assert saved.keys() >= expected.keys() == base.keys()  # FSDP2 writes a tied head a second time
    for key, weight in base.items():
        assert torch.allclose(saved[key], expected[key], atol=1e-4), key  # whole, and in its place
        assert not torch.equal(saved[key], weight), key


def load_base(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def quantised(bits: int) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    eight = BitsAndBytesConfig(load_in_8bit=True)
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return {"quantization_config": eight if bits == 8 else four}


def assert_only_the_adapter_learnt(
    runs: Runs, name: str, content: dict[str, Any], tolerance: float, **base: Any
) -> None:
    """Its weights are the ones asked for and changed; with them the base as it was gives the run's validation loss."""
    saved, before = runs.weights(name), runs.weights("adapter")
    assert saved.keys() == before.keys()
    assert {key.split(".lora_")[0].rsplit(".", 1)[1] for key in saved} == set(LINEAR)
    assert content["trainable_parameters"] == sum(weight.numel() for weight in saved.values())
    for key, weight in saved.items():
        assert weight.shape == before[key].shape, key
        assert not torch.equal(weight, before[key]), key
    assert runs.validation_loss(name, **base) == pytest.approx(content["validation_loss_after"], abs=tolerance)


@pytest.mark.parametrize(
    ("name", "layer", "flags", "bits"),
    [
        ("lora", "Linear", [], None),
        ("lora8", "Linear8bitLt", ["--load_8bit"], 8),
        ("lora4", "Linear4bit", ["--load_4bit"], 4),
    ],
)
def test_lora_under_ddp_teaches_the_adapter_and_nothing_else(
    name: str, layer: str, flags: list[str], bits: int | None, runs: Runs
) -> None:
    content = runs.lora(name, *flags)
    assert (content["wrapper"], content["adapted_layers"]) == ("DistributedDataParallel", [layer])
    # Rounding to 8 bits depends on the rows that are in one batch.
    base = quantised(bits) if bits else {}
    assert_only_the_adapter_learnt(runs, name, content, 1e-2 if bits == 8 else 1e-4, **base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrapper", "layer", "flags"),
    [
        ("lora-fsdp", "FSDPPeftModelForCausalLM", "Linear", ["--fsdp", "full_shard"]),
        ("lora4-fsdp", "FSDPPeftModelForCausalLM", "Linear4bit", ["--fsdp", "full_shard", "--load_4bit"]),
        ("lora-zero3", "DeepSpeedEngine", "Linear", ZERO3),
        ("lora-zero2", "DeepSpeedEngine", "Linear", ["--deepspeed", str(CONFIGS / "deepspeed_zero2.json")]),
    ],
)
def test_a_sharded_base_gives_a_whole_adapter(
    name: str, wrapper: str, layer: str, flags: list[str], runs: Runs
) -> None:
    content = runs.lora(name, *flags)
    assert (content["wrapper"], content["adapted_layers"]) == (wrapper, [layer])
    base = quantised(4) if layer == "Linear4bit" else {}
    assert_only_the_adapter_learnt(runs, name, content, 1e-4, **base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("zero2", ["--deepspeed", str(CONFIGS / "deepspeed_zero2.json")]),
        ("fsdp-offload", ["--fsdp", "full_shard auto_wrap offload"]),
        ("fsdp-checkpointing", ["--fsdp", "full_shard auto_wrap", "--gradient_checkpointing"]),
    ],
)
def test_other_ways_to_shard_take_the_steps_of_one_worker_too(
    name: str, flags: list[str], runs: Runs, one_worker: list[float]
) -> None:
    runs.full(name, "--num_workers", "2", *flags)
    assert runs.losses(name) == pytest.approx(one_worker, abs=1e-4)


@pytest.mark.slow
def test_zero3_resumes_on_as_many_workers_and_refuses_others(runs: Runs, one_worker: list[float]) -> None:
    saving = ["--save_strategy", "steps", "--save_steps", "5"]
    runs.full("stopped", "--num_workers", "2", *ZERO3, *saving, "--max_steps", "5", "--lr_scheduler_type", "constant")
    longer = ["--max_steps", "8", "--lr_scheduler_type", "constant", "--resume", *saving]
    with pytest.raises(SettingsError, match=r"written by 2 workers.*--num_workers 2"):
        runs.full("stopped", "--num_workers", "1", *ZERO3, *longer)
    with pytest.raises(SettingsError, match="was written under DeepSpeed: give --deepspeed"):
        runs.full("stopped", "--num_workers", "2", *longer)
    runs.full("stopped", "--num_workers", "2", *ZERO3, *longer)
    runs.full("undisturbed", "--num_workers", "2", *ZERO3, "--max_steps", "8", "--lr_scheduler_type", "constant")
    assert runs.losses("stopped") == pytest.approx(runs.losses("undisturbed"), abs=1e-5)
