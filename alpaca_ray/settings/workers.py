"""How many workers: a number, or as many as there are between two. Pure."""

from __future__ import annotations

import re
from typing import Any

_RANGE = re.compile(r"(\d+)(?::(\d+))?")


def parse_workers(value: Any) -> int | str:
    """Return ``N`` as a number, and ``MIN:MAX`` as it is written.

    Raises:
        ValueError: it is neither, or below 1, or MIN is above MAX.
    """
    match = _RANGE.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} must be a number of workers, or MIN:MAX")
    low, high = int(match[1]), int(match[2] or match[1])
    if low < 1:
        raise ValueError(f"{value!r}: needs at least one worker")
    if low > high:
        raise ValueError(f"{value!r}: MIN is above MAX")
    return low if low == high else f"{low}:{high}"


def worker_range(value: int | str) -> tuple[int, int]:
    """Return the least and the largest number of workers of a value that ``parse_workers`` returned."""
    low, _, high = str(value).partition(":")
    return int(low), int(high or low)
