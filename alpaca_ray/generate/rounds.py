"""Ray Data jobs one after the other over the numbers of requests, so that there is always one with numbers left.

A job's driver keeps statistics of every block (ray#66016), so there are several. Each starts client processes of its
own, so they are long, and the next one starts before the last one is used up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from alpaca_ray.generate.fanout import Round

_LONGEST = 32768  # requests of one job
_START_AHEAD = 10.0  # seconds before one is used up that the next one starts


class Rounds:
    """The jobs of a session.

    Attributes:
        next_start: number of the first request that is in no job yet.
    """

    def __init__(
        self,
        first: int,
        limit: int,
        *,
        clients: int,
        max_in_flight: int,
        placement: dict[str, str] | None,
        border: int | None,
    ) -> None:
        """Make none yet.

        Args:
            first: number of the first request without an outcome.
            limit: number of the first request that may never be sent.
            clients: actors of each job.
            placement: labels of the nodes that they may run on.
            border: see ``Round``.
        """
        self.next_start = first
        self._limit = limit
        self._clients = clients
        self._max_in_flight = max_in_flight
        self._placement = placement
        self._border = border
        self._rounds: list[Round] = []
        self._started = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether one of them is at work."""
        return any(round_.running for round_ in self._rounds)

    def extend(self, arguments: Mapping[str, Any], *, needed: int, answers: int, highest: int) -> None:
        """Start a job where there is none, or where the last one will soon be used up.

        Args:
            arguments: of ``AskTeacher``.
            needed: requests that the target will probably take.
            answers: that have come in this session.
            highest: number of the furthest of them.
        """
        self.check()
        per_second = answers / max(time.monotonic() - self._started, 1.0)
        ahead = 2 * self._max_in_flight + int(_START_AHEAD * per_second)
        if self.next_start >= self._limit or (self.running and self.next_start - highest > ahead):
            return
        # Far more than seems needed: rows that are left over when the target is met have cost nothing.
        size = min(_LONGEST, 4 * (needed + self._max_in_flight))
        ids = range(self.next_start, min(self._limit, self.next_start + size))
        self.next_start = ids.stop
        self._rounds = [round_ for round_ in self._rounds if round_.running]
        self._rounds.append(
            Round(ids, self._clients, arguments, self._max_in_flight, self._placement, border=self._border)
        )

    def check(self) -> None:
        """Raise what ended a job too early."""
        for round_ in self._rounds:
            if round_.error is not None:
                raise round_.error

    def join(self, timeout: float) -> None:
        """Wait for their ends, up to ``timeout`` seconds each."""
        for round_ in self._rounds:
            round_.join(timeout)
