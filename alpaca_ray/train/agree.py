"""What all workers of a run decide alike: each function must be called by every one of them. Imports torch."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist

from alpaca_ray.errors import AlpacaRayError

T = TypeVar("T")


def alone() -> bool:
    """Whether there is no other worker."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def first_error(error: AlpacaRayError | None) -> AlpacaRayError | None:
    """Return the first worker's error, on every worker: one that failed must not leave the others waiting."""
    return next((found for found in from_all(error) if found is not None), None)


def from_all(value: T) -> list[T]:
    """Return what each worker has."""
    if alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def extremes(value: int) -> tuple[int, int]:
    """Return the least and the largest value of all workers."""
    if alone():
        return value, value
    both = torch.tensor([-value, value])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    return -int(both[0].item()), int(both[1].item())
