"""Differences that can be undone exactly: of the bit patterns of numbers, as integers that wrap around.

Stanford's ``weight_diff.py`` subtracts floats, whose sums are rounded: what it recovers is near to the tuned weights.
Taken as unsigned integers of their width, patterns form a ring: ``(tuned - base) + base`` is ``tuned``, bit for bit.
Near numbers have near patterns, so a difference is mostly small, and says as little of the tuned weights as theirs.
"""

from __future__ import annotations

from typing import Any

# The integer type, as safetensors names it, in which a difference of each width is kept; torch's and numpy's names.
_KEPT = {1: ("U8", "uint8", "uint8"), 2: ("I16", "int16", "uint16"), 4: ("I32", "int32", "uint32")}
_KEPT[8] = ("I64", "int64", "uint64")
_WRAP = 1 << 64


def kept_dtype(width: int) -> str:
    """Return safetensors' name of the type that holds differences of numbers of ``width`` bytes."""
    return _KEPT[width][0]


def patterns(tensor: Any) -> Any:
    """Return a tensor's bit patterns as a numpy array of unsigned integers, of the same shape; a view where it can."""
    import torch

    _, signed, unsigned = _KEPT[tensor.element_size()]
    return tensor.contiguous().view(getattr(torch, signed)).numpy().view(unsigned)


def to_tensor(array: Any) -> Any:
    """Return bit patterns as a torch tensor of the type that ``kept_dtype`` names, ready to be written."""
    import torch

    return torch.from_numpy(array.view(_KEPT[array.itemsize][1]))


def as_numbers(array: Any, dtype: str) -> Any:
    """Return the tensor whose bit patterns these are; ``dtype`` is torch's name of its type."""
    import torch

    return to_tensor(array).view(getattr(torch, dtype))


def pattern_sum(array: Any) -> int:
    """Return the sum of bit patterns, modulo 2 ** 64: exact, and the same in any order."""
    return int(array.sum(dtype="uint64"))


def add(total: int, more: int) -> int:
    """Return the sum of two such sums."""
    return (total + more) % _WRAP


def rows_like(array: Any, rows: int) -> Any:
    """Return an array with ``rows`` rows: those it has, then from the first again.

    Rows of added tokens need something to be held against that every machine computes to the bit; the mean of the
    others, which Stanford's takes, depends on the order of summation.
    """
    import numpy as np

    if rows <= array.shape[0]:
        return array[:rows]
    return array[np.arange(rows) % array.shape[0]]
