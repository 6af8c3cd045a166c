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

from alpaca_ray.errors import OutputError
from alpaca_ray.train.agree import alone

_EVERY_SECONDS = 5.0


class RareReports:
    """Reports a row where the last report is some seconds old; every worker calls it alike, and it decides alike."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, row: Mapping[str, Any], error: OutputError | None = None) -> None:
        """Report ``row``, or leave it out.

        Args:
            error: what kept this worker from writing it down.

        Raises:
            OutputError: some worker has one; raised on every worker.
        """
        both = torch.tensor([int(time.monotonic() - self._last >= _EVERY_SECONDS), int(error is not None)])
        if not alone():
            dist.all_reduce(both, op=dist.ReduceOp.MAX)
        due, failed = both.tolist()
        if failed:
            raise error or OutputError("another worker cannot write into --output_dir any more")
        if due:
            self._last = time.monotonic()
            ray.train.report(dict(row))
