"""Rate limits that the stand-in teacher enforces: sliding windows, exact to the request."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from alpaca_ray.testing.stand_in import StandIn


class Window:
    """A sum over the last ``seconds`` that may not exceed ``limit``."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._entries: deque[tuple[float, int]] = deque()
        self._sum = 0

    def wait(self, now: float, weight: int) -> float:
        """Return the seconds until ``weight`` more fits, 0 where it does; what never fits waits a whole window."""
        self._forget(now)
        if self._sum + weight <= self.limit:
            return 0.0
        left = self._sum
        for entered, entry in self._entries:
            left -= entry
            if left + weight <= self.limit:
                return entered + self.seconds - now
        return self.seconds

    def add(self, now: float, weight: int) -> None:
        """Count ``weight`` at ``now``."""
        self._entries.append((now, weight))
        self._sum += weight

    def remaining(self, now: float) -> tuple[int, float]:
        """Return what is left, and the seconds until all of it is free again."""
        self._forget(now)
        last = self._entries[-1][0] + self.seconds - now if self._entries else 0.0
        return max(0, self.limit - self._sum), last

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0][0] + self.seconds <= now:
            self._sum -= self._entries.popleft()[1]


@dataclass(frozen=True)
class Refusal:
    """Why a request is over a limit, and how many seconds to wait (None: the server does not say)."""

    message: str
    wait: float | None


class Quota:
    """All limits of one stand-in."""

    def __init__(self, settings: StandIn, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._requests = [
            (name, Window(limit, seconds))
            for name, limit, seconds in (
                ("requests per second", settings.requests_per_second, 1.0),
                ("requests per minute", settings.requests_per_minute, 60.0),
            )
            if limit is not None
        ]
        per_minute = settings.tokens_per_minute
        self._tokens = Window(per_minute, 60.0) if per_minute is not None else None

    def admit(self, tokens: int, at_once: int) -> Refusal | None:
        """Count a request in, or return why it is refused.

        Args:
            tokens: what it weighs.
            at_once: requests under way before it.
        """
        now = self._clock()
        windows = [(name, window, 1) for name, window in self._requests]
        if self._tokens is not None:
            windows.append(("tokens per minute", self._tokens, tokens))
        waits = [(window.wait(now, weight), name, window.limit) for name, window, weight in windows]
        cap = self._settings.max_concurrent
        refusal = None
        if cap is not None and at_once >= cap:
            refusal = Refusal(f"Rate limit reached: at most {cap} requests at once.", None)
        elif any(wait for wait, _, _ in waits):
            wait, name, limit = max(waits)
            refusal = Refusal(f"Rate limit reached for {name}: limit {limit}. Try again in {wait:.3f}s.", wait)
        if refusal is None or self._settings.count_refused:
            for _, window, weight in windows:
                window.add(now, weight if refusal is None else min(1, weight))
        return refusal

    def headers(self) -> dict[str, str]:
        """Return the ``x-ratelimit-*`` headers, as OpenAI names them; of the requests' windows the longest speaks."""
        now = self._clock()
        found = {}
        named = [("requests", self._requests[-1][1])] if self._requests else []
        if self._tokens is not None:
            named.append(("tokens", self._tokens))
        for name, window in named:
            left, reset = window.remaining(now)
            found[f"x-ratelimit-limit-{name}"] = str(window.limit)
            found[f"x-ratelimit-remaining-{name}"] = str(left)
            found[f"x-ratelimit-reset-{name}"] = f"{reset:.3f}s"
        return found


def retry_header(seconds: float | None, form: str) -> dict[str, str]:
    """Return the header that asks to wait, in the form that is set; never less than ``seconds``."""
    if seconds is None:
        return {}
    if form == "ms":
        return {"retry-after-ms": str(math.ceil(seconds * 1000))}
    if form == "date":  # whole seconds only
        return {"retry-after": formatdate(math.ceil(time.time() + seconds), usegmt=True)}
    return {"retry-after": f"{math.ceil(seconds * 1000) / 1000:g}"}
