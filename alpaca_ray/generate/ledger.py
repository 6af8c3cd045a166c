"""The one place where requests are allowed and answers become durable.

A client asks ``admit`` before it sends and hands every outcome to ``record``, which returns only when it is on the
disk. The driver takes outcomes from here, not from the map call: what is inside an unfinished call of Ray Data would be
lost with it, what is here is not. Knows no Ray; the pipeline runs it as an actor on the driver's node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alpaca_ray.errors import AlpacaRayError, OutputError
from alpaca_ray.generate.journal import Header, Journal, Outcome

StopKind = Literal["drain", "drop"]


@dataclass(frozen=True)
class Delivery:
    """What the driver gets: new outcomes, an error that ends the run, or word that a first answer waits for a file."""

    outcomes: list[Outcome]
    error: AlpacaRayError | None
    wants_file: bool


class Ledger:
    """Journal writer and gate. All methods run on one event loop."""

    def __init__(self) -> None:
        self._journal: Journal | None = None
        self._unwritten: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._untaken: list[Outcome] = []
        self._recorded: set[int] = set()
        self._limit = 0
        self._stopping: StopKind | None = None
        self._error: AlpacaRayError | None = None
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()

    async def open(self, path: Path, header: Header | None) -> None:
        """Open the journal, with a header where it is new, and write what has been waiting for it."""
        self._journal = Journal(path)
        if header is not None:
            self._journal.write_header(header)
        await self._write()

    async def admit(self, request_id: int) -> bool:
        """Wait until a request may be sent; False where the run is stopping."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping or request_id < self._limit)
        return self._stopping is None

    async def record(self, outcome: Outcome) -> None:
        """Return when an outcome is durable. Those that come while the disk is busy share its next synchronisation.

        Raises:
            OutputError: it could not be written.
        """
        if outcome.request_id in self._recorded:
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unwritten.append((outcome, written))
        if self._journal is None:
            await self._notify()
        else:
            await self._write()
        await written

    async def recorded(self, request_ids: Collection[int]) -> set[int]:
        """Return which of these requests have an outcome, so that a repeated map call leaves them out."""
        return self._recorded.intersection(request_ids)

    async def take(self, timeout: float) -> Delivery:
        """Return what is new, waiting up to ``timeout`` seconds for something."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(self._has_news), timeout)
            outcomes, self._untaken = self._untaken, []
            return Delivery(outcomes, self._error, self._journal is None and bool(self._unwritten))

    async def allow(self, limit: int) -> None:
        """Let requests with numbers below ``limit`` be sent."""
        if limit > self._limit:
            self._limit = limit
            await self._notify()

    async def stop(self, kind: StopKind) -> None:
        """Send nothing more; ``drain`` waits for what is under way, ``drop`` does not."""
        self._stopping = kind
        await self._notify()

    async def stopped(self) -> StopKind:
        """Wait until the run is stopping."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping)
        return self._stopping or "drain"

    async def fail(self, error: AlpacaRayError) -> None:
        """Report an error that every request would meet: the run ends with the first of them."""
        self._error = self._error or error
        await self.stop("drop")

    async def close(self) -> None:
        """Write what is left and close the journal."""
        if self._journal is not None:
            await self._write()
            self._journal.close()

    def _has_news(self) -> bool:
        return bool(self._untaken or self._error or (self._journal is None and self._unwritten))

    async def _write(self) -> None:
        async with self._writing:
            batch, self._unwritten = self._unwritten, []
            if not batch or self._journal is None:
                return
            outcomes = [outcome for outcome, _ in batch]
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._journal.append, outcomes)
            except OutputError as error:
                await self.fail(error)
                for _, written in batch:
                    written.set_exception(error)
                return
        self._recorded.update(outcome.request_id for outcome in outcomes)
        self._untaken += outcomes
        for _, written in batch:
            if not written.done():
                written.set_result(None)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
