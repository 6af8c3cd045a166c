"""A tiny model, its adapters, and an engine over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alpaca_ray.serve.engine.loading import LoadedModel, load_for_generation
from alpaca_ray.serve.engine.torch_engine import TorchEngine


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A folder of two adapters of different rank, targets and scaling, strong enough to change every answer."""
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(tiny_llama, root / "red", rank=4, targets=["q_proj", "v_proj"], seed=1)
    make_adapter(tiny_llama, root / "blue", rank=8, targets=["q_proj", "k_proj", "up_proj", "down_proj"], seed=2)
    return root


def make_adapter(model: Path, folder: Path, *, rank: int, targets: list[str], seed: int) -> Path:
    """Write a random LoRA adapter whose B matrices are not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_llama: Path) -> LoadedModel:
    """The tiny Llama in float32."""
    torch.set_num_threads(1)
    return load_for_generation(str(tiny_llama), dtype="float32")


@pytest.fixture
def engine(tiny_llama: Path) -> Iterator[TorchEngine]:
    """An engine of six slots over a model of its own: loading adapters changes the model in place."""
    engine = TorchEngine(load_for_generation(str(tiny_llama), dtype="float32"), max_batch_size=6)
    yield engine
    engine.close()
