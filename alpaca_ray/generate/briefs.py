"""Which accepted records a prompt shows: drawn from the pool as it stood before the request's period began.

A period is a fixed number of requests. All of the ones before must have been processed first, so that the draw, like
everything else, depends on the answers alone and not on when they came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alpaca_ray.generate.process import Processor
from alpaca_ray.generate.prompt import PromptMaker
from alpaca_ray.generate.store import Prefix

_PERIOD = 256
_FOR_EVER = 2**62


class Briefs:
    """Draws the machine examples of requests; without any, nothing waits for anything."""

    def __init__(self, prompts: PromptMaker, processor: Processor) -> None:
        self._prompts = prompts
        self._processor = processor

    @property
    def period(self) -> int | None:
        """Requests that draw from the same pool; None where prompts show seed tasks only."""
        return _PERIOD if self._prompts.draws else None

    def known_up_to(self) -> int:
        """Return the number of the first request whose draw is not known yet."""
        if self.period is None:
            return _FOR_EVER
        return (self._processor.next_id // _PERIOD + 1) * _PERIOD

    def of(self, ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
        """Return the draws of requests; empty where there are none."""
        if self.period is None:
            return {}
        drawn = {}
        for number in ids:
            pool = Prefix(self._processor.records, self._processor.records_before(number // _PERIOD * _PERIOD))
            drawn[number] = self._prompts.draw(number, pool)
        return drawn
