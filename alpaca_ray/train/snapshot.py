"""A run's state copied to host memory, and written from there. Imports torch.

The copy is all that the training thread waits for: the trained weights (an adapter alone where the base is frozen), the
optimiser, the scheduler and the random state of every worker.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from alpaca_ray.errors import TrainingError

Writer = Callable[[Path], None]


def to_host(tree: Any) -> Any:
    """Return a copy of a tree of dicts, lists, tuples and tensors whose tensors lie in host memory, none shared.

    Tensors that are one and the same (tied weights) stay so in the copy. Copies from a GPU go through pinned memory
    and are complete when the function returns.
    """
    known: dict[tuple[Any, ...], torch.Tensor] = {}
    from_gpu = False

    def take(value: Any) -> Any:
        nonlocal from_gpu
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.numel() and key in known:
                return known[key]
            if tensor.device.type == "cpu":
                copied = tensor.clone()
            else:
                from_gpu = True
                copied = torch.empty_like(tensor, device="cpu", pin_memory=True)
                copied.copy_(tensor, non_blocking=True)
            known[key] = copied
            return copied
        if isinstance(value, dict):
            return {key: take(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [take(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return copy.deepcopy(value)

    copied = take(tree)
    if from_gpu:
        torch.cuda.current_stream().synchronize()
    return copied


def check_finite(weights: dict[str, torch.Tensor], step: int, folder: Path) -> None:
    """Check that weights are numbers, so that a broken checkpoint never takes the place of a good one.

    Raises:
        TrainingError: one is not.
    """
    for name, weight in weights.items():
        if isinstance(weight, torch.Tensor) and weight.is_floating_point() and not torch.isfinite(weight).all():
            raise TrainingError(
                f"{name} is no longer a number after step {step}: checkpoint-{step} was not written; the newest "
                f"checkpoint in {folder} is from before"
            )


def adapter_writer(model: Any, weights: dict[str, torch.Tensor]) -> Writer:
    """Return what writes an adapter's copied weights, and its configuration, as peft does."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    config = copy.copy(model.peft_config[model.active_adapters[0]])
    config.inference_mode = True

    def write(folder: Path) -> None:
        whole = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(whole, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    return write


def state_writer(state: Any) -> Writer:
    """Return what writes ``trainer_state.json`` as the state is now."""
    frozen = copy.copy(state)
    frozen.log_history = list(state.log_history)  # rows are added, never changed
    frozen.stateful_callbacks = copy.deepcopy(state.stateful_callbacks)

    def write(folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(frozen), indent=2, sort_keys=True) + "\n"
        (folder / "trainer_state.json").write_text(text, encoding="utf-8")

    return write


def torch_writer(name: str, content: Any) -> Writer:
    """Return what writes an object by ``torch.save``."""
    return lambda folder: torch.save(content, folder / name)


def random_state(*, every_device: bool) -> dict[str, Any]:
    """Return the state of this process's random generators, as Trainer reads it: of every GPU, or of its own."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        generators = torch.cuda.random
        state["cuda"] = generators.get_rng_state_all() if every_device else generators.get_rng_state()
    return state


def gather_random_states(*, every_device: bool) -> list[dict[str, Any]] | None:
    """Return every worker's random state on the first worker, None on the others; all of them must take part."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [random_state(every_device=every_device)]
    states: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(random_state(every_device=every_device), states)
    return states


def random_state_name(rank: int, workers: int) -> str:
    """Return the file of a worker's random state, as Trainer names it."""
    return "rng_state.pth" if workers <= 1 else f"rng_state_{rank}.pth"
