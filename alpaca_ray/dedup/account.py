"""Counts of a deduplication, and how far it is."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.dedup.unfinished import Progress
from alpaca_ray.novelty.rejected import REASONS, Reason

_SECONDS_BETWEEN_LINES = 5.0


class Account:
    """Counts decisions. ``before``: what an earlier session decided and how long that took."""

    def __init__(self, before: Progress) -> None:
        self.kept = before.kept
        self.rejected: Counter[str] = Counter(before.rejected)
        self._before = before
        self._started = self._said = time.monotonic()

    @property
    def records(self) -> int:
        """How many records were decided."""
        return self.kept + self.rejected.total()

    @property
    def seconds(self) -> float:
        """How long that took, over all sessions."""
        return self._before.seconds + time.monotonic() - self._started

    def add(self, reason: Reason | None) -> None:
        """Count a record. ``reason``: why it was dropped; None: it was kept."""
        if reason is None:
            self.kept += 1
        else:
            self.rejected[reason] += 1

    def tell(self) -> None:
        """Say how far the run is, every few seconds."""
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            rate = (self.records - self._before.records) / (now - self._started)
            say(f"{self.records:,} records read, {self.kept:,} kept, {rate:,.0f} a second")

    def metrics(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says."""
        seconds = self.seconds
        return {
            "records": self.records,
            "kept": self.kept,
            "rejected": {reason: self.rejected[reason] for reason in REASONS if self.rejected[reason]},
            "seconds": round(seconds, 3),
            "records_per_second": round(self.records / seconds, 1) if seconds else None,
        }
