"""Proofs about weights: that exactly those train which were asked for, that they move, and that a file holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from alpaca_ray.errors import ModelError, TrainingError
from alpaca_ray.export.weights import Weights, open_file, open_weights
from alpaca_ray.train.bare import local, plain_name, whole

ALL_LINEAR = "all-linear"
ADAPTER_FILE = "adapter_model.safetensors"
_SAMPLED = 1024  # values of a tensor that are looked at to see whether it moved


def check_trainable(model: torch.nn.Module, targets: Sequence[str] | None, *, magnitudes: bool = False) -> int:
    """Prove that the trainable weights are the ones asked for, and return how many tensors that are.

    Args:
        model: wrapped by peft where ``targets`` are given.
        targets: names of the layers that get an adapter, or ``["all-linear"]``; None in full fine-tuning.
        magnitudes: whether each adapter has a magnitude vector beside A and B (DoRA).

    Raises:
        TrainingError: a weight is trained that should not be, or is not and should be.
    """
    trained = {plain_name(name) for name, part in model.named_parameters() if part.requires_grad}
    if targets is None:
        wanted = {plain_name(name) for name, _ in model.named_parameters()}
    else:
        wanted = set(_adapter_names(model, targets, magnitudes))
    for names, what in ((wanted - trained, "is not trained and should be"), (trained - wanted, "is trained unasked")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise TrainingError(f"{min(names)} {what}{more}: the trainable weights are not the ones asked for")
    return len(trained)


def check_optimiser(model: torch.nn.Module, optimiser: Any) -> None:
    """Prove that the optimiser holds exactly the trainable weights.

    Raises:
        TrainingError: it misses one, so that it would never change, or holds another.
    """
    names = {id(part): name for name, part in model.named_parameters() if part.requires_grad}
    held = {id(part) for group in optimiser.param_groups for part in group["params"]}
    missing = [name for key, name in names.items() if key not in held]
    if missing:
        raise TrainingError(f"{min(missing)} is trainable, and the optimiser does not have it: it would never change")
    if held - names.keys():
        raise TrainingError(f"the optimiser holds {len(held - names.keys())} weights that are not trainable")


class Movement:
    """Whether any trained weight changed: a few values of each, remembered from before."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._before = dict(_sampled(model))

    def moved(self, model: torch.nn.Module) -> bool:
        """Whether a value that this worker holds is another one now."""
        return any(not torch.equal(values, self._before[name]) for name, values in _sampled(model))


def check_adapter(model: torch.nn.Module, folder: Path, *, writes: bool) -> int:
    """Prove that a folder's adapter file holds exactly the adapter in memory. Returns the number of tensors.

    Args:
        writes: whether this worker reads the file; the others only take part in gathering shards.

    Raises:
        TrainingError: a tensor is missing, too much, of another shape or value, or not finite.
    """
    named = [
        (
            plain_name(name)
            .replace(".default.", ".")
            .replace("lora_magnitude_vector.default", "lora_magnitude_vector"),
            part,
        )
        for name, part in model.named_parameters()
        if ".lora_" in name or ".modules_to_save.default." in name
    ]
    named = [(name.replace(".modules_to_save.", "."), part) for name, part in named]
    expected = {name.removesuffix(".weight") if "magnitude_vector" in name else name: part for name, part in named}
    return _compare(expected, folder / ADAPTER_FILE, lambda: open_file(folder / ADAPTER_FILE), writes=writes)


def check_model(model: torch.nn.Module, folder: Path, *, writes: bool) -> int:
    """Prove that a folder's model files hold exactly the model in memory. Returns the number of tensors.

    A weight that shares its storage with another (tied embeddings) may stand under either name.

    Args:
        writes: as ``check_adapter``.

    Raises:
        TrainingError: as ``check_adapter``.
    """
    expected = {plain_name(name): part for name, part in model.named_parameters(remove_duplicate=False)}
    return _compare(expected, folder, lambda: open_weights(folder, flag="--output_dir"), writes=writes)


def _adapter_names(model: Any, targets: Sequence[str], magnitudes: bool) -> Iterator[str]:
    base = model.get_base_model()
    head = base.get_output_embeddings()
    adapted = [path for path, part in base.named_modules() if hasattr(part, "base_layer")]
    inside = tuple(f"{path}." for path in adapted)
    for path, part in base.named_modules():
        path = plain_name(path)
        layer = getattr(part, "base_layer", part)
        if path.startswith(inside):
            continue
        linear = isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"
        if list(targets) == [ALL_LINEAR]:
            wanted = linear and layer is not head
        else:
            named = any(path == name or path.endswith(f".{name}") for name in targets)
            wanted = named and (linear or isinstance(layer, torch.nn.Embedding | torch.nn.Conv1d))
        if not wanted:
            continue
        full = f"base_model.model.{path}"
        if isinstance(layer, torch.nn.Embedding):
            yield from (f"{full}.lora_embedding_{letter}.default" for letter in "AB")
        else:
            yield from (f"{full}.lora_{letter}.default.weight" for letter in "AB")
        if magnitudes:
            yield f"{full}.lora_magnitude_vector.default.weight"


def _compare(expected: dict[str, Any], place: Path, opened: Any, *, writes: bool) -> int:
    """Hold tensors in memory, gathered one at a time, against those of files."""
    there: Weights | None = None
    fault = ""
    if writes:
        try:
            there = opened()
        except ModelError as error:
            fault = str(error)
    tied: dict[int, list[str]] = {}
    for name, part in expected.items():
        tied.setdefault(id(part), []).append(name)
    count = 0
    for part in {id(part): part for part in expected.values()}.values():
        names = tied[id(part)]
        with whole(part) as values:  # on every worker, also where a fault is known: the others wait in it
            if there is None or fault:
                continue
            found = [name for name in names if name in there]
            if not found:
                fault = f"{place}: lacks {names[0]}, which was trained"
            for name in found:
                fault = fault or _difference(place, name, values, there)
                count += 1
    if there is not None and not fault:
        extra = sorted(set(there) - expected.keys())
        fault = f"{place}: holds {extra[0]}, which the model in memory does not have" if extra else ""
    if fault:
        raise TrainingError(f"what was saved is not what was trained: {fault}")
    return count


def _difference(place: Path, name: str, values: torch.Tensor, there: Weights) -> str:
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


def _sampled(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, part in model.named_parameters():
        if part.requires_grad:
            values = local(part).reshape(-1)
            yield name, values[:: max(1, values.numel() // _SAMPLED)].to("cpu", copy=True)
