"""One autograd step for a linear layer with its LoRA adapter. Imports torch.

PEFT's layer copies its input to float32, draws a dropout mask element by element, and adds two results of full size.
Here the frozen product, the adapter and their gradients (LoRA: Hu et al. 2021, arXiv:2106.09685) are one function that
keeps the input once, adds the adapter's part within the matrix product, and draws four mask elements from each random
number. Same distribution, same result up to the order of additions; the stream of random numbers differs from PEFT's.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional

_LEVELS = 1 << 16  # a mask element is drawn from 16 random bits: dropout is exact to 1e-5, and never biased


def fuse(model: Any) -> int:
    """Replace the forward pass of each plain LoRA layer of a PEFT model; returns how many there were.

    Layers that are quantised, use DoRA or another variant, or have a bias in the adapter keep PEFT's own. Not for
    models whose weights are sharded (FSDP, ZeRO): the frozen layer's own hooks gather them, and this passes them by.
    """
    from peft.tuners.lora.layer import Linear

    count = 0
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _is_plain(layer: Any) -> bool:
    return (
        type(layer.base_layer) is torch.nn.Linear
        and "forward" not in vars(layer.base_layer)  # accelerate's, for a layer whose weights lie elsewhere
        and not layer.base_layer.weight.requires_grad
        and len(layer.lora_A) == 1
        and not layer.lora_variant
        and not layer.fan_in_fan_out
        and not any(layer.lora_bias.values())
    )


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Stand in for ``forward`` of ``peft.tuners.lora.layer.Linear``."""
    active = [name for name in self.active_adapters if name in self.lora_A]
    if self.disable_adapters or self.merged or args or kwargs or len(active) != 1 or not x.is_floating_point():
        result: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return result
    name = active[0]
    drop = self.lora_dropout[name]
    rate = drop.p if isinstance(drop, torch.nn.Dropout) and drop.training else 0.0
    down, up = self.lora_A[name].weight, self.lora_B[name].weight
    base = self.base_layer
    found: torch.Tensor = LoraLinear.apply(x, base.weight, base.bias, down, up, self.scaling[name], rate)
    return found


class LoraLinear(torch.autograd.Function):
    """``x W' + b + s (m * x) A' B'``, where ``m`` drops elements at ``rate`` and scales the rest up.

    Shapes: x (..., inputs), W (outputs, inputs), A (rank, inputs), B (outputs, rank). Computed in autocast's type, or
    that of W.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
        rate: float,
    ) -> torch.Tensor:
        device = x.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            ctx.types, ctx.shape = (x.dtype, down.dtype, up.dtype), x.shape
            flat = x.reshape(-1, x.shape[-1]).to(compute)
            weight, down, up = weight.to(compute), down.to(compute), up.to(compute)
            bias = bias.to(compute) if bias is not None else None
            mask = None
            seen = flat
            if rate > 0:
                threshold = min(round(rate * _LEVELS), _LEVELS - 1)  # at least one level is kept
                mask = keep_mask(flat, threshold)
                seen = flat * mask
                scaling = scaling * _LEVELS / (_LEVELS - threshold)
            inner = functional.linear(seen, down)
            out = functional.linear(flat, weight, bias)
            out = torch.addmm(out, inner, up.t(), alpha=scaling)
            ctx.save_for_backward(weight, down, up, seen, inner, mask)
            ctx.scaling = scaling
            return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        weight, down, up, seen, inner, mask = ctx.saved_tensors
        of_x, of_down, of_up = ctx.types
        gradient = gradients[0]
        gradient = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        with torch.autocast(gradient.device.type, enabled=False):
            to_inner = torch.mm(gradient, up).mul_(ctx.scaling)
            to_up = (torch.mm(gradient.t(), inner) * ctx.scaling).to(of_up)
            to_down = torch.mm(to_inner.t(), seen).to(of_down)
            to_x = None
            if ctx.needs_input_grad[0]:
                to_x = torch.mm(gradient, weight)
                if mask is None:
                    to_x.addmm_(to_inner, down)
                else:
                    to_x.addcmul_(torch.mm(to_inner, down), mask)
                to_x = to_x.to(of_x).view(ctx.shape)
        return to_x, None, None, to_down, to_up, None, None


def keep_mask(like: torch.Tensor, threshold: int) -> torch.Tensor:
    """Return ones, and zeros with probability ``threshold`` / 65,536, in the shape and type of ``like``.

    Draws from torch's generator of that device, so checkpointing and resuming repeat it.
    """
    if like.device.type != "cpu":
        bits = torch.randint(0, _LEVELS, like.shape, device=like.device, dtype=torch.int32)
        return (bits >= threshold).to(like.dtype)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    halves = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (halves >= threshold - _LEVELS // 2).to(like.dtype)
