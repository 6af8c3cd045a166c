"""Proofs about weights: that exactly those train which were asked for, and that they move. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from alpaca_ray.errors import TrainingError
from alpaca_ray.train.bare import local, plain_name
from alpaca_ray.train.decoder import beside_text, text_parameters

ALL_LINEAR = "all-linear"
_SAMPLED = 1024  # values of a tensor that are looked at to see whether it moved


def check_trainable(model: torch.nn.Module, targets: Sequence[str] | None, *, magnitudes: bool = False) -> int:
    """Prove that the trainable weights are the ones asked for, and return how many tensors that are.

    Args:
        model: wrapped by peft where ``targets`` are given.
        targets: names of the layers that get an adapter, or ``["all-linear"]``; None in full fine-tuning. Parts that
            no text goes through (``decoder.beside_text``) train in neither.
        magnitudes: whether each adapter has a magnitude vector beside A and B (DoRA).

    Raises:
        TrainingError: a weight is trained that should not be, or is not and should be.
    """
    trained = {plain_name(name) for name, part in model.named_parameters() if part.requires_grad}
    if targets is None:
        inside = text_parameters(model)
        wanted = {plain_name(name) for name, part in model.named_parameters() if id(part) in inside}
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
    """Which trained weights changed: a few values of each, remembered from before, and the adapters that were zero.

    A LoRA adapter begins as a product with a matrix of zeros, and any gradient makes that another one: a layer whose
    zeros stay has learnt nothing. It says nothing about the layers of experts, to which no token may have come.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._before = dict(_sampled(model))
        adapters = {name for name, part in model.named_parameters() if part.requires_grad and ".lora_" in name}
        self.zero = _zero(model, {name for name in adapters if "expert" not in name})

    def moved(self, model: torch.nn.Module) -> bool:
        """Whether a value that this worker holds is another one now."""
        return any(not torch.equal(values, self._before[name]) for name, values in _sampled(model))

    def idle(self, model: torch.nn.Module) -> set[str]:
        """Return the tensors of ``zero``, those that were nothing but zeros on this worker, that still are."""
        return _zero(model, self.zero)


def idle_layer(zero: Sequence[set[str]], idle: Sequence[set[str]]) -> str | None:
    """Return the first layer that learnt nothing where others did, None where all learnt or none.

    Args:
        zero: for each worker, the adapter tensors that were zero before; one that is sharded is zero if all shards are.
        idle: those that still are.
    """
    before, now = set.intersection(*zero), set.intersection(*idle)
    if not now or now == before:
        return None
    return plain_name(min(now)).split(".lora_")[0].removeprefix("base_model.model.")


def _adapter_names(model: Any, targets: Sequence[str], magnitudes: bool) -> Iterator[str]:
    base = model.get_base_model()
    head = base.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    beside = tuple(f"{path}." for path in beside_text(model))
    adapted = [path for path, part in base.named_modules() if hasattr(part, "base_layer")]
    inside = tuple(f"{path}." for path in adapted)
    for path, part in base.named_modules():
        path = plain_name(path)
        layer = getattr(part, "base_layer", part)
        if path.startswith(inside) or f"{path}.".startswith(beside):
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


def _sampled(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, part in model.named_parameters():
        if part.requires_grad:
            values = local(part).reshape(-1)
            yield name, values[:: max(1, values.numel() // _SAMPLED)].to("cpu", copy=True)


def _zero(model: torch.nn.Module, names: set[str]) -> set[str]:
    return {name for name, part in model.named_parameters() if name in names and not local(part).any()}
