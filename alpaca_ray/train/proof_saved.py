"""Proofs about what was saved: that a reader gets exactly the weights in memory from the files. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alpaca_ray.errors import ModelError, TrainingError
from alpaca_ray.export.weights import TYPES, Weights, open_file, open_weights
from alpaca_ray.train.bare import plain_name, whole

ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Saved:
    """Tensors of files by name; ``fault`` says what the library missed when it read them."""

    names: Collection[str]
    read: Callable[[str], torch.Tensor]
    fault: str = ""


def check_adapter(model: torch.nn.Module, folder: Path, *, writes: bool) -> int:
    """Prove that a folder's adapter file holds exactly the adapter in memory. Returns the number of tensors.

    Args:
        writes: whether this worker reads the file; the others only take part in gathering shards.

    Raises:
        TrainingError: a tensor is missing, too much, of another shape or value, or not finite.
    """
    expected = {
        adapter_name(plain_name(name)): part
        for name, part in model.named_parameters()
        if ".lora_" in name or ".modules_to_save.default." in name
    }
    place = folder / ADAPTER_FILE
    return _compare(expected, place, lambda: _files(open_file(place)), writes=writes)


def adapter_name(name: str) -> str:
    """Return the name under which peft saves a parameter of the adapter ``default``."""
    name = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def check_model(model: torch.nn.Module, folder: Path, *, writes: bool) -> int:
    """Prove that a folder's model files hold exactly the model in memory. Returns the number of tensors.

    A weight that shares its storage with another (tied embeddings) may stand under either name. Families that
    transformers saves under other names or in other pieces than it computes with (the experts of a mixture, the head of
    GPT-NeoX, Gemma 3 with its vision tower) are loaded back as a reader would, which takes the model's size in memory
    once more; of the others one tensor at a time is read.

    Args:
        writes: as ``check_adapter``.

    Raises:
        TrainingError: as ``check_adapter``.
    """
    expected = {plain_name(name): part for name, part in model.named_parameters(remove_duplicate=False)}

    def opened() -> Saved:
        there = open_weights(folder, flag="--output_dir")
        known = all(any(name in there for name in names) for names in _tied(expected).values())
        return _files(there) if known and there.keys() <= expected.keys() else _loaded(folder, there)

    return _compare(expected, folder, opened, writes=writes)


def _files(there: Weights) -> Saved:
    return Saved(there.keys(), there.read)


def _loaded(folder: Path, there: Weights) -> Saved:
    """Read a model as a user of transformers would, in the type that the files have.

    Raises:
        ModelError: it cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from alpaca_ray.train.architecture import without_zero

    kinds = {spec.dtype for spec in there.values()}
    dtype: Any = getattr(torch, TYPES[kinds.pop()][0]) if len(kinds) == 1 else "auto"
    try:
        with without_zero():
            model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded back: {' '.join(str(error).split())[:300]}") from error
    values = {name: part.detach() for name, part in model.named_parameters(remove_duplicate=False)}
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    fault = f"{folder}: lacks {missing[0]}, which was trained" if missing else ""
    if unknown and not fault:
        fault = f"{folder}: holds {unknown[0]}, which the model in memory does not have"
    return Saved(values.keys(), values.__getitem__, fault)


def _tied(expected: dict[str, Any]) -> dict[int, list[str]]:
    tied: dict[int, list[str]] = {}
    for name, part in expected.items():
        tied.setdefault(id(part), []).append(name)
    return tied


def _compare(expected: dict[str, Any], place: Path, opened: Callable[[], Saved], *, writes: bool) -> int:
    """Hold tensors in memory, gathered one at a time, against those of files."""
    there: Saved | None = None
    fault = ""
    if writes:
        try:
            there = opened()
            fault = there.fault
        except ModelError as error:
            fault = str(error)
    tied = _tied(expected)
    count = 0
    for part in {id(part): part for part in expected.values()}.values():
        names = tied[id(part)]
        with whole(part) as values:  # on every worker, also where a fault is known: the others wait in it
            if there is None or fault:
                continue
            found = [name for name in names if name in there.names]
            if not found:
                fault = f"{place}: lacks {names[0]}, which was trained"
            for name in found:
                fault = fault or _difference(place, name, values, there)
                count += 1
    if there is not None and not fault:
        fault = _too_much(place, there.names, expected)
    if fault:
        raise TrainingError(f"what was saved is not what was trained: {fault}")
    return count


def _too_much(place: Path, names: Iterable[str], expected: dict[str, Any]) -> str:
    extra = sorted(set(names) - expected.keys())
    return f"{place}: holds {extra[0]}, which the model in memory does not have" if extra else ""


def _difference(place: Path, name: str, values: torch.Tensor, there: Saved) -> str:
    try:
        saved = there.read(name)
    except ModelError as error:
        return str(error)
    if tuple(saved.shape) != tuple(values.shape):
        return f"{place}: {name} has the shape {tuple(saved.shape)}, in memory {tuple(values.shape)}"
    here = values.to(device="cpu", dtype=saved.dtype)  # a file may be of lower precision
    if not torch.isfinite(saved).all():
        return f"{place}: {name} holds values that are not finite"
    if torch.equal(saved, here):
        return ""
    apart = (saved.double() - here.double()).abs().max().item()
    return f"{place}: {name} differs from memory by up to {apart:.3g}"
