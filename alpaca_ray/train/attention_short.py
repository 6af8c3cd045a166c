"""Attention of short samples on the CPU: plain matrix products, and a backward pass of our own. Imports torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

SHORT = 1024  # tokens up to which a sample's scores are kept for the backward pass


@functools.lru_cache(maxsize=1)
def ceiling(tokens: int) -> torch.Tensor:
    """Minus infinity above the diagonal: (tokens, tokens), float32."""
    return torch.full((tokens, tokens), -math.inf).triu_(1)


class ShortSamples(torch.autograd.Function):
    """Causal attention of each sample by plain matrix products; scores, softmax and their gradients in float32."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int], scaling: float
    ) -> torch.Tensor:
        heads, tokens, width = query.shape[1:]
        shared = key.shape[1]
        out = torch.empty((1, tokens, heads, width), dtype=query.dtype)
        weights = []
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            # Query heads that share a key head lie below each other: (key heads, group * length, width).
            q = query[0, :, rows].float().reshape(shared, -1, width)
            scores = torch.bmm(q, key[0, :, rows].float().transpose(1, 2)).view(heads, length, length)
            scores.mul_(scaling).add_(ceiling(SHORT)[:length, :length])
            weight = torch.softmax(scores, -1).to(query.dtype)
            mixed = torch.bmm(weight.view(shared, -1, length), value[0, :, rows])
            out[0, rows] = mixed.view(heads, length, width).transpose(0, 1)
            weights.append(weight)
            start += length
        ctx.save_for_backward(query, key, value, out, *weights)
        ctx.lengths, ctx.scaling = lengths, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, out, *weights = ctx.saved_tensors
        gradient = gradients[0]
        heads, _, width = query.shape[1:]
        shared = key.shape[1]
        # Memory in the order of the projections, (tokens, heads, width), so that going back there copies nothing.
        of_query, of_key, of_value = (
            torch.empty_like(states.transpose(1, 2), memory_format=torch.contiguous_format)
            for states in (query, key, value)
        )
        start = 0
        for length, weight in zip(ctx.lengths, weights, strict=True):
            rows = slice(start, start + length)
            upper = gradient[0, rows].transpose(0, 1).reshape(shared, -1, width)
            flat = weight.view(shared, -1, length)
            of_value[0, rows] = torch.bmm(flat.transpose(1, 2), upper).transpose(0, 1)
            change = torch.bmm(upper.float(), value[0, :, rows].float().transpose(1, 2)).view(heads, length, length)
            # The sum over a row of (weight * change) equals that over the width of (output * its gradient).
            mean = (out[0, rows].float() * gradient[0, rows].float()).sum(-1).transpose(0, 1)
            scores = change.sub_(mean[:, :, None]).mul_(weight).mul_(ctx.scaling).to(query.dtype)
            scores = scores.view(shared, -1, length)
            of_query[0, rows] = torch.bmm(scores, key[0, :, rows]).view(heads, length, width).transpose(0, 1)
            below = query[0, :, rows].reshape(shared, -1, width)
            of_key[0, rows] = torch.bmm(scores.transpose(1, 2), below).transpose(0, 1)
            start += length
        return of_query.transpose(1, 2), of_key.transpose(1, 2), of_value.transpose(1, 2), None, None
