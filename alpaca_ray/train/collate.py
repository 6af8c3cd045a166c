"""From samples to a batch of tensors: packed into one row, or padded as the originals did.

A packed row holds exactly the samples of a padded batch, end to end. Position ids begin anew at each sample, and the
label of a sample's first token is masked, so nothing is predicted across a border. The borders themselves go to the
attention function (``cu_seq_lens_q``, ...): ours and flash attention compute each sample alone. Another attention gets
them from position ids, where the family takes them from there, or from a 4-D mask of blocks (OPT).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from alpaca_ray.train.encode import IGNORE_INDEX, Sample

Batch = dict[str, Any]

# Families whose attention keeps samples apart by position ids alone (checked: below 1e-7 in the logits).
_BY_POSITION = frozenset(
    {"llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "smollm3"}
)
# Families that ignore position ids in the mask, and take a ready 4-D mask.
_BY_MASK = frozenset({"opt"})
# Families that pass the borders of samples on to the attention function (checked: the same).
_BY_BORDERS = _BY_POSITION | _BY_MASK
_TAKE_BORDERS = frozenset({"alpaca_packed", "flash_attention_2", "flash_attention_3"})

Packing = Literal["borders", "position_ids", "mask", "none"]


def packing_of(model_type: str, attention: str | None) -> Packing:
    """Return how samples of one row are kept apart in a model family, ``none`` where no way was checked."""
    if model_type in _BY_BORDERS and attention in _TAKE_BORDERS:
        return "borders"
    if model_type in _BY_POSITION and attention in ("sdpa", "eager"):
        return "position_ids"
    if model_type in _BY_MASK and attention == "sdpa":
        return "mask"
    return "none"


def packed(samples: Sequence[Sample], *, borders: bool = False, block_mask: bool = False) -> Batch:
    """Return one row: ``input_ids``, ``labels``, ``position_ids`` of shape (1, tokens), int64.

    With ``borders`` also what transformers calls flash attention's keywords: where samples begin and the last one ends
    (``cu_seq_lens_q`` and ``cu_seq_lens_k``, (samples + 1,), int32), and the longest one's tokens (``max_length_q`` and
    ``max_length_k``). With ``block_mask`` also ``attention_mask`` of shape (1, 1, tokens, tokens), bool: true where a
    token may look.
    """
    import torch

    if not samples:
        return _empty()
    lengths = [len(sample["input_ids"]) for sample in samples]
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for sample, length in zip(samples, lengths, strict=True):
        ids += sample["input_ids"]
        labels += [IGNORE_INDEX, *sample["labels"][1:]]
        positions += range(length)
    batch: Batch = {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
    }
    if borders:
        starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        batch |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
        batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    if block_mask:
        owner = torch.arange(len(samples)).repeat_interleave(torch.tensor(lengths))
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
    return lambda samples: packed(samples, borders=packing == "borders", block_mask=packing == "mask")


def token_count(batch: Batch) -> int:
    """Return the real tokens of a batch, padding left out."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return int(mask.sum())
    return int(batch["input_ids"].numel()) if "position_ids" in batch else 0  # the batch without weight has neither


def _empty() -> Batch:
    """A batch without weight, for a worker that has no sample in a step: it must still take part in the exchange."""
    import torch

    return {"input_ids": torch.zeros((1, 2), dtype=torch.long), "labels": torch.full((1, 2), IGNORE_INDEX)}
