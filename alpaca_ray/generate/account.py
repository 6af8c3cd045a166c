"""What a run cost and brought: totals for ``metrics.json``, and the original's progress lines."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.process import Step


class Tally:
    """Totals over every outcome in the journal, extras beyond the target included: they were paid for."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.tokens: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.failed_in_a_row = 0
        self.last_error = ""

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes in."""
        for outcome in outcomes:
            self.requests += 1
            self.failures.update(outcome.failures)
            for name in ("prompt_tokens", "completion_tokens"):
                self.tokens[name] += outcome.usage.get(name, 0)
            if outcome.error is None:
                self.failed_in_a_row = 0
            else:
                self.failed += 1
                self.failed_in_a_row += 1
                self.last_error = f"{outcome.error}: {outcome.message}"

    def metrics(self) -> dict[str, Any]:
        """Return the totals. ``errors`` counts attempts that failed, ``failed`` requests that never succeeded."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "tokens": {
                "prompt": self.tokens["prompt_tokens"],
                "completion": self.tokens["completion_tokens"],
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


class Waiting:
    """Says from time to time that nothing has come yet, so that a slow teacher does not look like a run that hangs."""

    def __init__(
        self, say: Callable[[str], None], *, every: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``every``: seconds without an answer after which a line is printed, and the next one."""
        self._say = say
        self._every = every
        self._clock = clock
        self._since = clock()

    def note(self, *, new: int, under_way: int, answers: int) -> None:
        """Take note of how many outcomes just came, are being waited for, and have come in all."""
        now = self._clock()
        if new:
            self._since = now
        elif now - self._since >= self._every:
            self._since = now
            self._say(f"waiting: {under_way} requests under way, {answers} answers so far")


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
