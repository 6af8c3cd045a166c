"""Attention over packed rows against torch's own, sample by sample, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from alpaca_ray.train import attention

LENGTHS = [5, 1, 17, 30]


def states(kind: torch.dtype, *, heads: int = 6, shared: int = 2, width: int = 8) -> list[torch.Tensor]:
    """Query, key and value as a model's layers make them: (1, heads, tokens, width), transposed."""
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    return [
        torch.randn(1, tokens, count, width).mul(2).to(kind).transpose(1, 2).requires_grad_()
        for count in (heads, shared, shared)
    ]


def by_torch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    """One masked attention over the whole row, in float32."""
    owner = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    position = torch.cat([torch.arange(length) for length in LENGTHS])
    distance = position[:, None] - position[None, :]
    mask = (owner[:, None] == owner[None, :]) & (distance >= 0) & (distance < (window or 10**6))
    groups = query.shape[1] // key.shape[1]
    found = scaled_dot_product_attention(
        query.float(),
        key.float().repeat_interleave(groups, 1),
        value.float().repeat_interleave(groups, 1),
        mask,
        scale=0.3,
    )
    return found.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("kind", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_each_sample_attends_to_itself_alone(kind: torch.dtype, allowed: float, window: int | None) -> None:
    row = states(kind)
    borders = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    ours, _ = attention.packed_attention(
        None, *row, None, cu_seq_lens_q=borders, max_length_q=max(LENGTHS), scaling=0.3, sliding_window=window
    )
    theirs = by_torch(*row, window)
    weights = torch.randn(theirs.shape)
    gradients = []
    for result in (ours, theirs):
        gradients.append(torch.autograd.grad((result.float() * weights).sum(), row))
    torch.testing.assert_close(ours.float(), theirs, atol=allowed, rtol=allowed)
    for mine, right in zip(*gradients, strict=True):
        scale = right.float().abs().max()
        torch.testing.assert_close(mine.float() / scale, right.float() / scale, atol=allowed, rtol=allowed)


def test_the_own_backward_pass_is_exact_in_float32() -> None:
    row = states(torch.float32)
    ours = attention.ShortSamples.apply(*row, LENGTHS, 0.3)
    theirs = by_torch(*row, None)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn(theirs.shape)
    mine, right = (torch.autograd.grad((result * weights).sum(), row) for result in (ours, theirs))
    for a, b in zip(mine, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_samples_longer_than_the_kept_scores_take_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORT", 16)
    row = states(torch.bfloat16)
    borders = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    ours, _ = attention.packed_attention(None, *row, None, cu_seq_lens_q=borders, scaling=0.3)
    torch.testing.assert_close(ours.float(), by_torch(*row, None), atol=2e-2, rtol=2e-2)
