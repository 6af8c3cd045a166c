"""What a run cost and brought: totals for ``metrics.json``, and the original's progress lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from alpaca_ray.generate.budget import Price, Tokens
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.process import Step


class Tally:
    """Totals over every outcome in the journal, extras beyond the target included: they were paid for."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.tokens = Tokens()
        self.estimated = Tokens()
        self.failures: Counter[str] = Counter()
        self.failed_in_a_row = 0
        self.last_error = ""

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes in."""
        for outcome in outcomes:
            self.requests += 1
            self.failures.update(outcome.failures)
            self.tokens += Tokens.of_usage(outcome.usage)
            self.estimated += Tokens.of_usage(outcome.estimated)
            if outcome.error is None:
                self.failed_in_a_row = 0
            else:
                self.failed += 1
                self.failed_in_a_row += 1
                self.last_error = f"{outcome.error}: {outcome.message}"

    def metrics(self) -> dict[str, Any]:
        """Return the totals.

        ``errors`` counts attempts that failed, ``failed`` requests that never succeeded; ``tokens.estimated`` is what
        answers without a count took at most.
        """
        return {
            "requests": self.requests,
            "failed": self.failed,
            "tokens": {
                "prompt": self.tokens.prompt,
                "completion": self.tokens.completion,
                "estimated": self.estimated.total,
            },
            "errors": dict(sorted(self.failures.items())),
        }


class Progress:
    """Prints the original's two lines for every ``size`` requests processed."""

    def __init__(self, size: int, say: Callable[[str], None], *, done: int = 0) -> None:
        """``done``: how many lines an earlier session printed."""
        self._size = size
        self._say = say
        self._number = done
        self._requests = self._generated = self._kept = 0
        self._seconds = self._processing = 0.0

    def add(self, outcome: Outcome, step: Step, processing: float) -> None:
        """Count one processed request in. ``processing``: seconds that it took here."""
        self._requests += 1
        # The requests of a line were under way together: it took as long as the slowest.
        self._seconds = max(self._seconds, outcome.seconds)
        self._processing += processing
        self._generated += step.generated
        self._kept += step.kept
        if self._requests == self._size:
            self.flush()

    def flush(self) -> None:
        """Print the lines of what has been counted since the last ones."""
        if not self._requests:
            return
        self._number += 1
        self._say(
            f"Request {self._number} took {self._seconds:.2f}s, processing took {self._processing:.2f}s\n"
            f"Generated {self._generated} instructions, kept {self._kept} instructions"
        )
        self._requests = self._generated = self._kept = 0
        self._seconds = self._processing = 0.0


class Status:
    """A line from time to time: how far the run is, what it has cost, and how long it will take.

    It also comes where nothing has happened, so that a slow teacher does not look like a run that hangs.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        target: int,
        kept: int,
        price: Price | None,
        max_cost: float | None,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``kept``: records there are at the start. ``every``: seconds between two lines."""
        self._say = say
        self._target = target
        self._first = kept
        self._price = price
        self._max_cost = max_cost
        self._every = every
        self._clock = clock
        self._started = self._said = clock()
        self._failures = 0

    def note(
        self, *, kept: int, requests: int, under_way: int, spent: Tokens, failures: int = 0, trouble: str = ""
    ) -> None:
        """Print a line where it is time for one.

        Args:
            kept: records there are.
            requests: answered so far, earlier sessions' included.
            under_way: sent and not come back.
            spent: tokens so far.
            failures: attempts that failed so far in this session.
            trouble: what went wrong with the last of them.
        """
        now = self._clock()
        if now - self._said < self._every:
            return
        self._said = now
        parts = [
            f"{kept} of {self._target} instructions",
            f"{requests} requests ({under_way} under way)",
            f"{spent.total:,} tokens",
        ]
        if self._price is not None:
            limit = "" if self._max_cost is None else f" of {self._max_cost:.2f}"
            parts.append(f"{self._price.cost(spent):.2f}{limit} US dollars")
        if kept > self._first:
            left = (self._target - kept) * (now - self._started) / (kept - self._first)
            parts.append(f"about {duration(left)} to go")
        if failures > self._failures:
            new = failures - self._failures
            parts.append(f"{new} attempt{'s' if new > 1 else ''} failed since the last line ({trouble[:200]})")
        self._failures = failures
        self._say("progress: " + ", ".join(parts))


def duration(seconds: float) -> str:
    """Return a duration in words: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Pace:
    """How many requests are worth having under way, from the yield so far.

    Without it, a run that lacks two records would send as many requests as may be in flight, and pay for them all.
    """

    def __init__(self, *, expected: float) -> None:
        """``expected``: records a request is thought to bring, weighed as one request against those measured."""
        self._kept = expected
        self._requests = 1

    def add(self, kept: int, *, requests: int = 1) -> None:
        """Count processed requests in, and the records that they brought."""
        self._kept += kept
        self._requests += requests

    def needed(self, missing: int) -> int:
        """Return how many further requests ``missing`` records will probably take."""
        per_request = max(self._kept, 0.5) / self._requests
        return -int(-missing // per_request) if missing else 0
