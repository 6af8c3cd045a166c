"""Attention over a packed row, one sample at a time: no mask, and no work across samples. Imports torch.

A mask over the whole row costs its length squared; the samples alone cost the sum of their lengths squared, which at
eight samples a row is about a ninth. The borders come with the batch as ``cu_seq_lens_q``, the keyword that
transformers hands to flash attention, too. Three ways compute the same:

- on a GPU, ``torch.nn.attention.varlen_attn`` (FlashAttention, Dao 2023) over all samples at once;
- on the CPU in bfloat16, two matrix products and a float32 softmax, with a backward pass of our own: torch's own CPU
  kernel takes about three times as long for samples of a few hundred tokens;
- everywhere else, ``scaled_dot_product_attention`` of each sample.

Under autocast queries and keys arrive in float32, to which the rotation by float32 angles has raised them; they are
lowered to the type of the products, as autocast does for torch's own attention.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alpaca_ray.train.attention_short import SHORT, ShortSamples, ceiling

NAME = "alpaca_packed"


def install(model: Any) -> None:
    """Make a model use this attention. Rows that are not packed are computed as by ``sdpa``."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask_unless_packed)
    model.set_attn_implementation(NAME)


def sdpa_mask_unless_packed(*args: Any, allow_is_causal_skip: bool = True, **options: Any) -> torch.Tensor | None:
    """Return ``sdpa``'s mask for a padded row, and none for a packed one, whose borders ``cu_seq_lens_q`` gives.

    transformers forbids to leave the mask out exactly where it found borders in the position ids; only then, since a
    packed batch has no mask of its own.
    """
    if not allow_is_causal_skip and options.get("attention_mask") is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, allow_is_causal_skip=allow_is_causal_skip, **options)
    return mask


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' form.

    Args:
        query: (rows, heads, tokens, width); ``key`` and ``value`` the same with their own number of heads.
        attention_mask: as ``sdpa`` takes it; not looked at in a packed row.
        cu_seq_lens_q: where each sample of a packed row begins, and its end: (samples + 1,), int32.
        max_length_q: tokens of the longest sample.
        sliding_window: how far back a token may look, itself included.
        softcap: scores are kept below it by a tangent (Gemma 2).

    Returns:
        (rows, tokens, heads, width), and no weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if cu_seq_lens_q is None:
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
            )
        return _explicit(query, key, value, attention_mask, scaling, softcap, dropout), None
    query, key, value = lowered(query, key, value)
    if not dropout and softcap is None and _has_flash(query.device, query.dtype):
        longest = max_length_q or int(cu_seq_lens_q.diff().max())
        window = sliding_window if sliding_window and sliding_window < longest else None
        return _varlen(query, key, value, cu_seq_lens_q, longest, scaling, window), None
    lengths = cu_seq_lens_q.diff().tolist()
    return by_sample(query, key, value, lengths, scaling, dropout, sliding_window, softcap), None


def lowered(*states: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors in the type of autocast's products, where autocast is on."""
    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(states)
    return [part.to(torch.get_autocast_dtype(device)) for part in states]


@functools.lru_cache(maxsize=8)
def _has_flash(device: torch.device, kind: torch.dtype) -> bool:
    """Whether the flash kernels that torch brings run there: half precision, on Ampere or newer."""
    halves = (torch.bfloat16, torch.float16)
    return device.type == "cuda" and kind in halves and torch.cuda.get_device_capability(device) >= (8, 0)


def by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scaling: float,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of each sample of a row by itself: (1, tokens, heads, width). ``lengths`` are theirs, in tokens."""
    longest = max(lengths)
    window = sliding_window if sliding_window and sliding_window < longest else None
    kept = query.device.type == "cpu" and query.dtype == torch.bfloat16 and longest <= SHORT
    if kept and not dropout and softcap is None and window is None:
        result: torch.Tensor = ShortSamples.apply(query, key, value, lengths, scaling)
        return result
    sizes = list(lengths)
    parts = [
        _one(*sample, scaling, dropout, window, softcap)
        for sample in zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    ]
    return torch.cat(parts, 1)


@contextmanager
def own_masks() -> Iterator[None]:
    """Keep no mask from before the block, and none that the block made: those of fake tensors have no values."""
    for made in (_band, ceiling):
        made.cache_clear()
    try:
        yield
    finally:
        for made in (_band, ceiling):
            made.cache_clear()


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One sample's attention: (1, tokens, heads, width)."""
    tokens = query.shape[2]
    mask = None if window is None or tokens <= window else _band(tokens, window, query.device)
    if softcap is not None:
        allowed = _band(tokens, window or tokens, query.device)[None, None]
        return _explicit(query, key, value, allowed, scaling, softcap, dropout)
    found = scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2)


def _explicit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float,
    dropout: float,
) -> torch.Tensor:
    """Attention with capped scores, which no fused kernel of torch has."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = _band(query.shape[2], query.shape[2], query.device)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    return torch.matmul(weights, value).transpose(1, 2)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    of_query, of_key, of_value = (states[0].transpose(0, 1) for states in (query, key, value))
    found = varlen_attn(
        of_query,
        of_key,
        of_value,
        borders,
        borders,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(found, torch.Tensor)  # a pair only where the log-sums are asked for
    return found[None]


@functools.lru_cache(maxsize=64)
def _band(tokens: int, window: int, device: torch.device) -> torch.Tensor:
    """Which tokens each may look at: (tokens, tokens), bool."""
    distance = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)[None, :]
    return (distance >= 0) & (distance < window)
