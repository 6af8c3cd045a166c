"""From samples to a batch of tensors: packed into one row, or padded as the originals did.

A packed row holds exactly the samples of a padded batch, end to end. Position ids begin anew at each sample, and the
label of a sample's first token is masked, so nothing is predicted across a border. Families that take borders
from position ids need no attention mask; OPT ignores them and gets a 4-D mask of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from alpaca_ray.train.encode import IGNORE_INDEX, Sample

Batch = dict[str, Any]

# Families whose attention keeps samples apart by position ids alone (checked: below 1e-7 in the logits).
_BY_POSITION = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma3", "smollm3"})
# Families that ignore position ids in the mask, and take a ready 4-D mask.
_BY_MASK = frozenset({"opt"})

Packing = Literal["position_ids", "mask", "none"]


def packing_of(model_type: str, attention: str | None) -> Packing:
    """Return how samples of one row are kept apart in a model family, ``none`` where no way was checked."""
    if model_type in _BY_POSITION and attention in ("sdpa", "eager", "flash_attention_2", "flash_attention_3"):
        return "position_ids"
    if model_type in _BY_MASK and attention == "sdpa":
        return "mask"
    return "none"


def packed(samples: Sequence[Sample], *, block_mask: bool = False) -> Batch:
    """Return one row: ``input_ids``, ``labels``, ``position_ids`` of shape (1, tokens), int64.

    With ``block_mask`` also ``attention_mask`` of shape (1, 1, tokens, tokens), bool: true where a token may look.
    """
    import torch

    if not samples:
        return _empty()
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    for number, sample in enumerate(samples):
        ids += sample["input_ids"]
        labels += [IGNORE_INDEX, *sample["labels"][1:]]
        positions += range(len(sample["input_ids"]))
        owners += [number] * len(sample["input_ids"])
    batch = {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
    }
    if block_mask:
        owner = torch.tensor(owners)
        same = owner[:, None] == owner[None, :]
        batch["attention_mask"] = torch.tril(same)[None, None]
    return batch


def padded(samples: Sequence[Sample], *, pad_id: int, side: Literal["left", "right"] = "right") -> Batch:
    """Return ``input_ids``, ``labels`` and ``attention_mask`` of shape (samples, longest), int64; masked by length."""
    import torch

    if not samples:
        return _empty()
    longest = max(len(sample["input_ids"]) for sample in samples)

    def pad(values: Sequence[int], filler: int) -> list[int]:
        space = [filler] * (longest - len(values))
        return [*space, *values] if side == "left" else [*values, *space]

    labels = [[IGNORE_INDEX, *sample["labels"][1:]] for sample in samples]
    return {
        "input_ids": torch.tensor([pad(sample["input_ids"], pad_id) for sample in samples]),
        "labels": torch.tensor([pad(row, IGNORE_INDEX) for row in labels]),
        "attention_mask": torch.tensor([pad([1] * len(sample["input_ids"]), 0) for sample in samples]),
    }


def collator(
    packing: Packing, *, pad_id: int, side: Literal["left", "right"] = "right"
) -> Callable[[Sequence[Sample]], Batch]:
    """Return the function that makes a batch of a list of samples."""
    if packing == "none":
        return lambda samples: padded(samples, pad_id=pad_id, side=side)
    return lambda samples: packed(samples, block_mask=packing == "mask")


def token_count(batch: Batch) -> int:
    """Return the real tokens of a batch, padding left out."""
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None and mask.dim() == 2 else int(batch["input_ids"].numel())


def _empty() -> Batch:
    """A batch without weight, for a worker that has no sample in a step: it must still take part in the exchange."""
    import torch

    return {"input_ids": torch.zeros((1, 2), dtype=torch.long), "labels": torch.full((1, 2), IGNORE_INDEX)}
