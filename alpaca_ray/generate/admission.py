"""Which request may be sent next, and to which endpoint: one place for all clients, so that every limit is global.

Lowest number first, because the decision maker goes by the numbers. Knows no Ray and no event loop; the ledger asks.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from alpaca_ray.generate.breaker import Breaker
from alpaca_ray.generate.budget import Budget, Tokens
from alpaca_ray.generate.limits import Pacer

NEVER = float("inf")


@dataclass(frozen=True)
class Want:
    """A client's wish to send a request; each attempt is one. ``worst``: the tokens that it can take at most."""

    request_id: int
    worst: Tokens


@dataclass(frozen=True)
class Grant:
    """Permission to send.

    Attributes:
        endpoint: index of the teacher.
        at: when to send, in seconds since the epoch; 0, which means now, where the endpoint has no rate limit. A
            request that could not leave then gives its permission back: many that were held up must not leave at once.
    """

    request_id: int
    endpoint: int
    at: float = 0.0


@dataclass(frozen=True)
class Failure:
    """An attempt that brought no answer.

    Attributes:
        kind: such as ``rate_limit``.
        lost: nobody knows whether the endpoint charges for it (a time-out, a connection that broke).
        retry_after: seconds that the endpoint asked to wait.
    """

    request_id: int
    kind: str
    message: str = ""
    lost: bool = False
    retry_after: float | None = None


@dataclass
class Endpoint:
    """State of one endpoint."""

    name: str
    pacer: Pacer
    weight: float = 1.0
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    credit: float = 0.0


@dataclass
class _Open:
    client: str
    endpoint: int
    worst: Tokens
    at: float


class Admission:
    """Grants wishes within the limits.

    Attributes:
        notes: what a person should hear of, such as a pause; whoever says it clears the list.
        exhausted: the budget's flag that ended the run, once it has.
        lead: seconds from a grant to the earliest moment at which its request can leave.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        max_in_flight: int,
        budget: Budget,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoints = list(endpoints)
        self.budget = budget
        self.notes: list[str] = []
        self.exhausted: str | None = None
        self.limit = 0
        self.lead = 0.0
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._wants: list[tuple[int, int, str, Want]] = []
        self._count = 0
        self._open: dict[int, _Open] = {}
        self._dead: set[str] = set()

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._open)

    def want(self, client: str, wants: Iterable[Want]) -> None:
        """Take wishes of a client."""
        for want in wants:
            self._count += 1
            heapq.heappush(self._wants, (want.request_id, self._count, client, want))

    def grant(self) -> tuple[list[tuple[str, Grant, Tokens]], float]:
        """Grant what may go now.

        Returns:
            Client, grant and worst case of each; and the seconds until there may be more without anything happening
            (``NEVER`` where something must).
        """
        granted: list[tuple[str, Grant, Tokens]] = []
        wait = NEVER
        while self._wants and len(self._open) < self._max_in_flight and self.exhausted is None:
            request_id, _, client, want = self._wants[0]
            if client in self._dead or request_id in self._open:
                heapq.heappop(self._wants)
                continue
            if request_id >= self.limit:
                break
            if not self.budget.reserve(want.worst):
                self.exhausted = self.budget.exhausted_for(want.worst)
                break
            endpoint, at, wait = self._choose(want.worst)
            if endpoint is None:
                self.budget.settle(want.worst, Tokens())
                break
            heapq.heappop(self._wants)
            self.endpoints[endpoint].in_flight += 1
            self._open[request_id] = _Open(client, endpoint, want.worst, at)
            granted.append((client, Grant(request_id, endpoint, at), want.worst))
            wait = NEVER
        return granted, wait

    def answered(self, request_id: int, client: str, actual: Tokens) -> None:
        """Note that a request is done: where it was still under way, the endpoint answered, be it of no use."""
        opened = self._close(request_id, client)
        if opened is None:
            self.budget.settle(Tokens(), actual)
            return
        self.budget.settle(opened.worst, actual)
        endpoint = self.endpoints[opened.endpoint]
        endpoint.pacer.refund(opened.at, opened.worst.total, actual.total)
        if endpoint.breaker.open:
            self.notes.append(f"{endpoint.name} answers again")
        endpoint.breaker.answered()

    def failed(self, client: str, failure: Failure) -> Tokens | None:
        """Note a failed attempt; return its worst case, or None where the client did not hold it.

        Where nobody knows what it cost, its worst case counts as spent.
        """
        opened = self._close(failure.request_id, client)
        if opened is None:
            return None
        self.budget.settle(opened.worst, opened.worst if failure.lost else Tokens())
        endpoint = self.endpoints[opened.endpoint]
        if failure.kind == "not_sent":
            endpoint.pacer.refund(opened.at, opened.worst.total, 0)
        elif failure.kind == "rate_limit":
            pause = endpoint.breaker.rate_limited(failure.retry_after)
            if pause is not None:
                self.notes.append(
                    f"{endpoint.name} answers nothing but rate limits ({failure.message}): pausing {pause:.0f} s"
                )
        return opened.worst

    def forget(self, client: str) -> None:
        """Note that a client has died: what it had under way counts as spent in full."""
        self._dead.add(client)
        for request_id, worst in self.held_by(client):
            self._close(request_id, client)
            self.budget.settle(worst, worst)

    def held_by(self, client: str) -> list[tuple[int, Tokens]]:
        """Return the requests that a client has under way, with their worst cases."""
        return [(number, opened.worst) for number, opened in self._open.items() if opened.client == client]

    def _close(self, request_id: int, client: str) -> _Open | None:
        opened = self._open.get(request_id)
        if opened is None or opened.client != client:
            return None
        self.endpoints[opened.endpoint].in_flight -= 1
        return self._open.pop(request_id)

    def _choose(self, worst: Tokens) -> tuple[int | None, float, float]:
        """Return an endpoint that may take a request, and when; or None, and the seconds until looking again.

        Smooth weighted round robin (nginx's): among those that may, shares follow the weights. One that is held up
        takes no part: it neither saves turns for later nor makes the others run into debt.
        """
        soonest = NEVER
        ready = []
        for index, endpoint in enumerate(self.endpoints):
            pause = endpoint.breaker.wait(endpoint.in_flight)
            if pause:
                soonest = min(soonest, pause)
            else:
                ready.append(index)
        for index in sorted(ready, key=lambda index: -(self.endpoints[index].credit + self.endpoints[index].weight)):
            at, wait = self.endpoints[index].pacer.reserve(worst.total, self.lead)
            if at is None:
                soonest = min(soonest, wait)
                ready.remove(index)
                continue
            for other in ready:
                self.endpoints[other].credit += self.endpoints[other].weight
            self.endpoints[index].credit -= sum(self.endpoints[other].weight for other in ready)
            return index, at, 0.0
        return None, 0.0, soonest
