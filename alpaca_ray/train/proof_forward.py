"""Proofs on one small batch that the forward pass is the one that was meant. Run on every worker alike.

Two forward passes that should agree are compared by the distance of their logits, relative to the logits' own length
(Frobenius norms, each position's mean over the vocabulary taken out, which softmax ignores). How far apart rounding may
bring them follows from the precision: with unit roundoff *u* and about ten roundings a layer that act as independent
errors, two passes through *L* layers differ by at most about ``u * sqrt(2 * 10 * L)`` (the statistical model of N.
Higham and T. Mary, "A new approach to probabilistic rounding error analysis", 2019). Measured on the embedded model: a
fifth of that in bfloat16. What sees a neighbour or sits at a wrong position is apart by 0.2 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from alpaca_ray.errors import TrainingError
from alpaca_ray.train.bare import bare_copy, gathered
from alpaca_ray.train.collate import padded
from alpaca_ray.train.encode import IGNORE_INDEX, Sample

# Half the distance between 1 and the next number: 24, 11 (also TF32's products) and 8 bits of significand.
# LLM.int8() rounds activations to 8 bits a row, too, and which columns it leaves out depends on the whole batch.
ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-7}
_LENGTHS = (24, 17)  # tokens of the samples: short, so that it takes seconds, and unequal
_WINDOW = 8  # tokens that a probe's sliding window spans at most: samples reach beyond it
_LEAST_TOLERANCE = 1e-5


def tolerance(precision: str, layers: int) -> float:
    """Return how far apart, relatively, rounding may bring the logits of two passes through ``layers`` layers."""
    return max(_LEAST_TOLERANCE, ROUNDOFF[precision] * math.sqrt(20 * max(1, layers)))


def probe_samples(dataset: Sequence[Sample]) -> list[Sample]:
    """Return two short samples of the run's own; one that is shorter still is repeated up to their length."""
    found = [dataset[number % len(dataset)] for number in range(len(_LENGTHS))]
    return [
        {
            "input_ids": [sample["input_ids"][place % len(sample["input_ids"])] for place in range(size)],
            "labels": [sample["labels"][place % len(sample["labels"])] for place in range(size)],
        }
        for sample, size in zip(found, _LENGTHS, strict=True)
    ]


@contextmanager
def short_windows(model: torch.nn.Module) -> Iterator[int]:
    """Let sliding windows span less than the probe's samples for a while: a window that is not kept then shows.

    Masks take the window from the configuration, attention functions from the layer; both are restored. Yields the
    number of places that were changed.
    """
    owners: dict[int, Any] = {}
    for part in model.modules():
        for owner in (part, getattr(part, "config", None)):
            window = vars(owner).get("sliding_window") if owner is not None and hasattr(owner, "__dict__") else None
            if isinstance(window, int) and window > _WINDOW:
                owners[id(owner)] = owner
    kept = [(owner, owner.sliding_window) for owner in owners.values()]
    try:
        for owner, _ in kept:
            owner.sliding_window = _WINDOW
        yield len(kept)
    finally:
        for owner, window in kept:
            owner.sliding_window = window


def check_batches(
    forward: Callable[[dict[str, Any]], torch.Tensor],
    collate: Callable[[Sequence[Sample]], dict[str, Any]],
    samples: Sequence[Sample],
    *,
    packed: bool,
    vocabulary: int,
    allowed: float,
    leak_allowed: float,
) -> dict[str, float]:
    """Prove that the run's batches give each sample the logits that it has elsewhere. Returns the distances found.

    Args:
        forward: from a batch to its logits, (rows, tokens, vocabulary).
        collate: what makes the run's batches.
        packed: whether those are one row; they are then held against padded ones, else against each sample alone.
        vocabulary: number of token ids.
        allowed: relative distance that rounding explains.
        leak_allowed: the same for a sample whose neighbours in its row are exchanged: nothing else changes, so that
            its own numbers should stay as they are.

    Raises:
        TrainingError: a sample's logits depend on what shares its batch, or on how it is laid out.
    """
    ours = _rows(forward, collate, samples, packed=packed)
    if packed:
        other = _rows(forward, lambda some: padded(some, pad_id=0), samples, packed=False)
        names = "packed and padded logits"
    else:
        other = [_rows(forward, lambda some: padded(some, pad_id=0), [sample], packed=False)[0] for sample in samples]
        names = "logits in a padded batch and alone"
    apart = max(distance(mine, theirs) for mine, theirs in zip(ours, other, strict=True))
    exchanged = [_other_tokens(sample, vocabulary) for sample in samples[:-1]] + [samples[-1]]
    leak = distance(_rows(forward, collate, exchanged, packed=packed)[-1], ours[-1])
    if not leak <= leak_allowed:
        raise TrainingError(
            f"samples of one batch see each other: exchanging its neighbours moves a sample's logits by {leak:.2g} "
            f"(relative; {leak_allowed:.2g} is rounding): this model cannot be trained so; try --no_packing"
        )
    if not apart <= allowed:
        raise TrainingError(
            f"{names} differ by {apart:.2g} (relative; {allowed:.2g} is rounding): this model cannot be trained so"
            + ("; try --no_packing" if packed else "")
        )
    return {"batch_distance": apart, "leak_distance": leak}


def check_shards(forward: Callable[[], Any], block: torch.nn.Module, name: str, *, allowed: float) -> float:
    """Prove that a sharded block computes what it computes with its weights gathered. Returns the distance.

    The block's input and output are taken from a forward pass of the whole model; the same input then goes through a
    copy of the block that owns whole weights, gathered by other means than the sharding's own, and has no hooks.

    Raises:
        TrainingError: the outputs differ.
    """
    seen: dict[str, Any] = {}

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["input"] = (args, kwargs)

    def after(_: Any, args: tuple[Any, ...], output: Any) -> None:
        seen["output"] = output

    handles = [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    output = _first(seen["output"])
    args, kwargs = seen["input"]
    whole = bare_copy(block, gathered(block, dtype=_compute_type(block, output)))
    expected = _first(whole(*args, **kwargs))
    apart = _relative(output, expected)
    if not apart <= allowed:
        raise TrainingError(
            f"{name}: its sharded forward differs from the one with its weights gathered by {apart:.2g} (relative; "
            f"{allowed:.2g} is rounding): this way of sharding corrupts the model"
        )
    return apart


def first_block(model: torch.nn.Module) -> tuple[str, torch.nn.Module] | None:
    """Return path and module of the first decoder layer: the head of the longest list of modules; None without one."""
    lists = [
        (path, part) for path, part in model.named_modules() if isinstance(part, torch.nn.ModuleList) and len(part)
    ]
    if not lists:
        return None
    path, layers = max(lists, key=lambda entry: len(entry[1]))
    return f"{path}.0", layers[0]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the relative distance of two sets of logits, (tokens, vocabulary); infinite where one is not finite."""
    one, other = (part.double() - part.double().mean(dim=-1, keepdim=True) for part in (one, other))
    return _relative(one, other)


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double(), other.double()
    found = ((one - other).norm() / other.norm().clamp(min=1e-30)).item()
    return found if math.isfinite(found) else math.inf


def _rows(
    forward: Callable[[dict[str, Any]], torch.Tensor],
    collate: Callable[[Sequence[Sample]], dict[str, Any]],
    samples: Sequence[Sample],
    *,
    packed: bool,
) -> list[torch.Tensor]:
    """Return the logits of each sample, (tokens, vocabulary)."""
    batch = {name: value for name, value in collate(samples).items() if name != "labels"}
    mask = batch.get("attention_mask")
    logits = forward(batch)
    if packed:
        starts = [0]
        for sample in samples:
            starts.append(starts[-1] + len(sample["input_ids"]))
        return [logits[0, start:end] for start, end in pairwise(starts)]
    assert mask is not None
    return [row[keep.bool()] for row, keep in zip(logits, mask.to(logits.device), strict=True)]


def _other_tokens(sample: Sample, vocabulary: int) -> Sample:
    ids = [(token + 1) % vocabulary for token in sample["input_ids"]]
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)}


def _first(output: Any) -> torch.Tensor:
    found = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(found, torch.Tensor)
    return found


def _compute_type(block: torch.nn.Module, output: torch.Tensor) -> torch.dtype | None:
    """Return the type in which FSDP computes the block, or None where weights keep their own."""
    state = getattr(block, "_get_fsdp_state", None)
    policy = getattr(state(), "_mp_policy", None) if state else None
    return getattr(policy, "param_dtype", None)
