"""What a run may do, and what its driver and its clients hear from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.generate.admission import Admission, Endpoint, Grant
from alpaca_ray.generate.budget import Budget, Limits, Tokens
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.limits import Pacer, Rates

StopKind = Literal["drain", "drop"]


@dataclass(frozen=True)
class Terms:
    """What a run may do.

    Attributes:
        endpoints: name, weight and the file its pace is shared through (None: with nobody) of each.
        spent: tokens of earlier sessions.
    """

    endpoints: Sequence[tuple[str, float, Path | None]] = (("the teacher", 1.0, None),)
    rates: Rates = field(default_factory=Rates)
    max_in_flight: int = 32
    limits: Limits = field(default_factory=Limits)
    spent: Tokens = field(default_factory=Tokens)

    def admission(self) -> Admission:
        """Return what grants requests on these terms."""
        endpoints = [Endpoint(name, Pacer(self.rates, path), weight) for name, weight, path in self.endpoints]
        return Admission(endpoints, self.max_in_flight, Budget(self.limits, self.spent))


@dataclass(frozen=True)
class Answer:
    """What a client hears: requests that it may send, whether the run is stopping, and what the time is here."""

    grants: list[Grant]
    stopping: StopKind | None = None
    now: float = 0.0


@dataclass(frozen=True)
class Delivery:
    """What the driver gets.

    Attributes:
        outcomes: new ones.
        error: ends the run.
        wants_file: a first answer waits for the journal to be opened.
        under_way: requests that have been sent and not come back.
        spent: tokens so far; what is under way is not in it.
        reserved: tokens that what is under way can take at most.
        exhausted: flag of the budget that is used up.
        notes: what a person should hear of.
        trouble: the last failed attempt, in words.
        failures: attempts that failed so far.
    """

    outcomes: list[Outcome]
    error: AlpacaRayError | None
    wants_file: bool
    under_way: int = 0
    spent: Tokens = field(default_factory=Tokens)
    reserved: Tokens = field(default_factory=Tokens)
    exhausted: str | None = None
    notes: list[str] = field(default_factory=list)
    trouble: str = ""
    failures: int = 0
