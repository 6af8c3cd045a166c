"""Sharded weights made whole, and modules that own them without a wrapper's hooks. Runs inside a worker."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def whole(parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a parameter with all its values: gathered from the workers where FSDP2 or ZeRO-3 sharded it.

    Every worker must take part. The tensor may be the parameter itself: it is not to be changed, nor kept.
    """
    if hasattr(parameter, "full_tensor"):  # a DTensor, FSDP2's
        with torch.no_grad():
            yield parameter.full_tensor()
    elif hasattr(parameter, "ds_id"):  # ZeRO-3's
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            yield parameter.data
    else:
        yield parameter.detach()


def gathered(module: torch.nn.Module, *, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return copies of a module's parameters, whole, by name.

    Args:
        dtype: the type that floating-point ones are cast to; None leaves them as they are.
    """
    found = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        with whole(parameter) as values:
            cast = dtype if dtype and values.is_floating_point() and values.dtype != torch.uint8 else values.dtype
            copy = values.to(cast, copy=True)
        state = getattr(parameter, "quant_state", None)
        if state is not None:  # bitsandbytes keeps what 4-bit weights mean beside them
            copy.quant_state = state  # type: ignore[attr-defined]
        found[name] = copy
    return found


def bare_copy(module: torch.nn.Module, parameters: Mapping[str, torch.Tensor], prefix: str = "") -> torch.nn.Module:
    """Return a module of the same kind with the given parameters, the same buffers, and none of the hooks.

    FSDP2 makes a class of its own on the fly, and DeepSpeed hooks every part: both are left behind.
    """
    kind = type(module)
    if kind.__name__.startswith("FSDP") and len(kind.__mro__) > 2:
        kind = kind.__mro__[2]
    copy = object.__new__(kind)
    copy.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        if name.endswith("_hooks") or name.endswith("_hooks_with_kwargs") or name.endswith("_hooks_always_called"):
            copy.__dict__[name] = OrderedDict()
        elif isinstance(value, types.MethodType) and value.__self__ is module:  # a patched forward
            copy.__dict__[name] = types.MethodType(value.__func__, copy)
    copy.__dict__["_parameters"] = {
        name: None if value is None else parameters[f"{prefix}{name}"] for name, value in module._parameters.items()
    }
    copy.__dict__["_modules"] = {
        name: None if part is None else bare_copy(part, parameters, f"{prefix}{name}.")
        for name, part in module._modules.items()
    }
    return copy


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP2 or ZeRO-3 holds the module's weights in shards."""
    return any(hasattr(part, "full_tensor") or hasattr(part, "ds_id") for part in module.parameters())


def plain_name(name: str) -> str:
    """Return a parameter's name without what checkpointing and compiling wrappers add."""
    for added in ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.", "module."):
        name = name.replace(added, "") if added != "module." else name.removeprefix(added)
    return name


def local(parameter: Any) -> torch.Tensor:
    """Return the values that this worker holds of a parameter."""
    if hasattr(parameter, "to_local"):
        return parameter.detach().to_local()
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach()
    return parameter.detach()
