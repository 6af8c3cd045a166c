"""What a server saw over time: arrivals in any window, and how many requests were under way."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np


class Arrivals:
    """Counts requests as they come and go. 40 bytes a request.

    Attributes:
        at_once: requests under way now.
        most_at_once: the most there ever were.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.at_once = 0
        self.most_at_once = 0
        self._clock = clock
        self._arrived = array("d")
        self._changed = array("d")
        self._levels = array("l")

    def __len__(self) -> int:
        return len(self._arrived)

    def arrive(self) -> None:
        """Note that a request has come."""
        now = self._clock()
        self._arrived.append(now)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self._note(now)

    def leave(self) -> None:
        """Note that a request is done with."""
        self.at_once -= 1
        self._note(self._clock())

    def most_within(self, seconds: float) -> int:
        """Return the most arrivals in any window of ``seconds`` that is closed on the left and open on the right."""
        times = np.array(self._arrived)
        if not len(times):
            return 0
        ends = np.searchsorted(times, times + seconds, side="left")
        return int((ends - np.arange(len(times))).max())

    def per_minute(self) -> list[int]:
        """Return the arrivals of each minute since the first."""
        times = np.array(self._arrived)
        if not len(times):
            return []
        return np.bincount(((times - times[0]) // 60).astype(int)).tolist()

    def load(self, *, at_least: int | None = None, skip: float = 0.0) -> dict[str, Any]:
        """Return how busy it was from the first arrival to the last.

        Args:
            at_least: the level for ``share_at_least``.
            skip: seconds after the first arrival to leave out, while a run ramps up.

        Returns:
            ``seconds`` looked at, ``arrivals_after_skip`` in them, ``mean_in_flight``, and, with a level,
            ``share_at_least``: the share of that time with so many requests under way or more; and ``slots_busy``: the
            mean of min(under way, level) over it.
        """
        begin = self._arrived[0] + skip if self._arrived else 0.0
        end = self._arrived[-1] if self._arrived else 0.0
        seconds = max(0.0, end - begin)
        levels = np.array(self._levels, dtype=float)
        # A thread that looks while the server counts may find one entry more here than there.
        times = np.clip(np.array(self._changed)[: len(levels)], begin, end)
        spans = np.diff(times)
        arrived = int((np.array(self._arrived) >= begin).sum())
        found: dict[str, Any] = {"seconds": round(seconds, 3), "arrivals_after_skip": arrived, "mean_in_flight": None}
        if not seconds:
            return found
        found["mean_in_flight"] = round(float(levels[:-1] @ spans) / seconds, 3)
        if at_least is not None:
            found["share_at_least"] = round(float(spans[levels[:-1] >= at_least].sum()) / seconds, 4)
            busy = float(np.minimum(levels[:-1], at_least) @ spans) / seconds
            found["slots_busy"] = round(busy / at_least, 4) if at_least else None
        return found

    def _note(self, now: float) -> None:
        self._changed.append(now)
        self._levels.append(self.at_once)
