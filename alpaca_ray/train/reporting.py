"""Rows for Ray's dashboard, no more often than Ray takes them.

Ray Train's controller takes a worker's reports one by one, at each look at its workers, and a worker with a report that
was not taken yet waits: a report for each of many short steps would be what the training waits for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray.train
import torch
import torch.distributed as dist

_EVERY_SECONDS = 5.0


class RareReports:
    """Reports a row where the last report is some seconds old; every worker calls it alike, and it decides alike."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Report ``row``, or leave it out."""
        due = torch.tensor(int(time.monotonic() - self._last >= _EVERY_SECONDS))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(due, op=dist.ReduceOp.MAX)
        if due.item():
            self._last = time.monotonic()
            ray.train.report(dict(row))
