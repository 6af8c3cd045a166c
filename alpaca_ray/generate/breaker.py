"""A circuit breaker: an endpoint that answers nothing but 429 is left alone for a while.

Source of the pattern: M. Nygard, Release It! (2007).
"""

from __future__ import annotations

import time
from collections.abc import Callable

_LIMIT = 10  # rate limits in a row that trip it
_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 120.0


class Breaker:
    """Counts rate limits in a row over all clients; pauses the endpoint, then lets one request try."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_a_row = 0
        self._pauses = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether it has tripped and no request has succeeded since."""
        return self._pauses > 0

    def wait(self, in_flight: int) -> float:
        """Return the seconds until a request may go; 0 means now, infinity until one that is under way comes back.

        Args:
            in_flight: requests under way at the endpoint. While the breaker is open, one at a time may try.
        """
        if not self.open:
            return 0.0
        remaining = self._until - self._clock()
        if remaining > 0:
            return remaining
        return float("inf") if in_flight else 0.0

    def answered(self) -> None:
        """Note an answer: the endpoint works."""
        self._in_a_row = self._pauses = 0
        self._until = 0.0

    def rate_limited(self, retry_after: float | None) -> float | None:
        """Note a 429; return the seconds of the pause where this one begins it.

        Args:
            retry_after: seconds that the endpoint asked to wait; the pause is no shorter.
        """
        self._in_a_row += 1
        now = self._clock()
        if self._until > now:  # of requests that were under way when it tripped
            self._until = max(self._until, now + (retry_after or 0.0))
            return None
        if self._in_a_row < _LIMIT and not self.open:
            return None
        pause = max(retry_after or 0.0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(16, self._pauses)))
        self._pauses += 1
        self._until = now + pause
        return pause
