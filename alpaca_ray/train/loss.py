"""The language-model head and its cross-entropy, in chunks: the logits never stand whole in memory. Imports torch.

For each chunk of positions the logits are made, turned into the loss and into their own gradient, and dropped; what
remains is the gradient of the hidden states (and of the head, where it is trained). The scheme is that of Liger's fused
linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989), in plain torch, so it runs everywhere and computes nothing
twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from alpaca_ray.train.encode import IGNORE_INDEX

# Logits of a chunk: 16 MiB of float32 stay near a core's cache; a GPU wants larger products.
_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}


class HeadLoss(torch.autograd.Function):
    """Sum of the cross-entropies of all positions whose target is not ``IGNORE_INDEX``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        smoothing: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Compute loss and gradients.

        Args:
            hidden: (positions, width).
            weight: (vocabulary, width); ``bias`` (vocabulary,) or none.
            targets: (positions,), int64.
            smoothing: share of each target that is spread over the whole vocabulary.
            softcap: logits are kept below it by a tangent (Gemma 2).

        Returns:
            A float32 scalar.
        """
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(device, enabled=False):
            head = weight.to(compute)
            rows = max(1, _CHUNK_ELEMENTS.get(device, 1 << 26) // weight.shape[0])
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            to_hidden = torch.empty_like(hidden) if wants_hidden else None
            to_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
            to_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                states = hidden[part].to(compute)
                logits = functional.linear(states, head, None if bias is None else bias.to(compute)).float()
                if softcap is not None:
                    logits.div_(softcap).tanh_().mul_(softcap)
                loss, slope = _chunk(logits, targets[part], smoothing, softcap, wants_hidden or wants_weight)
                total += loss
                if slope is None:
                    continue
                lower = slope.to(compute)
                if to_hidden is not None:
                    to_hidden[part] = torch.mm(lower, head)
                if to_weight is not None:
                    to_weight += torch.mm(lower.t(), states)
                if to_bias is not None:
                    to_bias += slope.sum(0)
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        ctx.types = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """Scale what the forward pass found."""
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        scale = gradients[0]
        # In float32: a GPU would round a scale that lies on it to the type of the states, and bias all of them alike.
        return (
            None if to_hidden is None else (to_hidden.float() * scale).to(to_hidden.dtype),
            None if to_weight is None else to_weight.mul_(scale).to(ctx.types[0]),
            None if to_bias is None else to_bias.mul_(scale).to(ctx.types[1]),
            None,
            None,
            None,
        )


def _chunk(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float, softcap: float | None, wants_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed loss of float32 ``logits``, and its gradient in their place (before the cap, if any)."""
    learnt = targets != IGNORE_INDEX
    chosen = targets.clamp(min=0)[:, None]
    slopes_of_cap = None if softcap is None or not wants_slope else 1 - (logits / softcap).square()
    largest = logits.amax(1, keepdim=True)
    picked = logits.gather(1, chosen) - largest
    mean = logits.mean(1, keepdim=True) - largest if smoothing else 0.0
    exponents = logits.sub_(largest).exp_()
    sums = exponents.sum(1, keepdim=True)
    losses = sums.log() - (1 - smoothing) * picked - smoothing * mean
    total = torch.where(learnt, losses[:, 0], 0.0).sum()  # an index by mask would make a GPU wait
    if not wants_slope:
        return total, None
    slope = exponents.div_(sums)
    if smoothing:
        slope.sub_(smoothing / logits.shape[1])
    slope.scatter_add_(1, chosen, torch.full_like(picked, smoothing - 1))
    slope.mul_(learnt[:, None])
    if slopes_of_cap is not None:
        slope.mul_(slopes_of_cap)
    return total, slope


def head_of(model: Any) -> torch.nn.Linear | None:
    """Return the head of a causal language model where ``HeadLoss`` can stand in for it, else None."""
    head = model.get_output_embeddings()
    plain = isinstance(head, torch.nn.Linear) and type(head).__name__ in ("Linear", "FSDPLinear")
    return head if plain and "forward" not in vars(head) else None  # accelerate's, for weights that lie elsewhere


@contextmanager
def loss_in_head(model: Any, head: torch.nn.Linear, targets: torch.Tensor, smoothing: float) -> Iterator[None]:
    """Within it, the model's ``logits`` are the summed loss against ``targets`` (rows, positions), a scalar.

    The loss is computed inside the head's own call, so that whatever gathers sharded weights there still does.
    """
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = HeadLoss.apply(
            hidden.flatten(0, -2), head.weight, head.bias, targets.flatten(), smoothing, softcap
        )
        return loss

    head.forward = forward  # type: ignore[method-assign, assignment]
    if softcap is not None:
        config.final_logit_softcapping = None
    try:
        yield
    finally:
        del head.forward
        if softcap is not None:
            config.final_logit_softcapping = softcap
