"""The one place where requests are allowed and answers become durable.

A client follows the ``Permission`` before it sends and hands every outcome to ``record``, which returns only when it is
on the disk. The driver takes outcomes from here, not from the map call: what is inside an unfinished call of Ray Data
would be lost with it, what is here is not. Knows no Ray; the pipeline runs it as an actor on the driver's node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alpaca_ray.errors import AlpacaRayError, OutputError
from alpaca_ray.generate.journal import Header, Journal, Outcome

StopKind = Literal["drain", "drop"]


@dataclass(frozen=True)
class Permission:
    """What clients may do: send requests with numbers below ``limit``, and none once the run is ``stopping``."""

    limit: int = 0
    stopping: StopKind | None = None


@dataclass(frozen=True)
class Delivery:
    """What the driver gets.

    Attributes:
        outcomes: new ones.
        error: ends the run.
        wants_file: a first answer waits for the journal to be opened.
        under_way: requests that clients have in hand and may send.
    """

    outcomes: list[Outcome]
    error: AlpacaRayError | None
    wants_file: bool
    under_way: int = 0


class Ledger:
    """Journal writer and gate. All methods run on one event loop."""

    def __init__(self) -> None:
        self._journal: Journal | None = None
        self._unwritten: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._untaken: list[Outcome] = []
        self._taken = 0
        self._recorded: set[int] = set()
        self._in_hand: set[int] = set()
        self._permission = Permission()
        self._error: AlpacaRayError | None = None
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()

    async def open(self, path: Path, header: Header | None) -> None:
        """Open the journal, with a header where it is new, and write what has been waiting for it."""
        self._journal = Journal(path)
        if header is not None:
            self._journal.write_header(header)
        await self._write()

    async def follow(self, known: Permission, timeout: float) -> Permission:
        """Return what clients may do, waiting up to ``timeout`` seconds for it to differ from what one knows."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._permission != known), timeout)
        return self._permission

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

    async def take_in_hand(self, request_ids: Collection[int]) -> set[int]:
        """Return which of these requests are to be sent: a repeated map call leaves out those with an outcome."""
        missing = set(request_ids) - self._recorded
        self._in_hand |= missing
        return missing

    async def take(self, seen: int, timeout: float) -> Delivery:
        """Return what is new, waiting up to ``timeout`` seconds for something.

        Args:
            seen: how many outcomes the driver has had in all. What it was given and does not count, because it was
                interrupted before it got it, it is given again.
        """
        async with self._changed:
            del self._untaken[: seen - self._taken]
            self._taken = seen
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(self._has_news), timeout)
            outcomes = list(self._untaken)
            under_way = sum(1 for number in self._in_hand if number < self._permission.limit)
            return Delivery(outcomes, self._error, self._journal is None and bool(self._unwritten), under_way)

    async def allow(self, limit: int) -> None:
        """Let requests with numbers below ``limit`` be sent."""
        if limit > self._permission.limit:
            self._permission = replace(self._permission, limit=limit)
            await self._notify()

    async def stop(self, kind: StopKind) -> None:
        """Send nothing more; ``drain`` waits for what is under way, ``drop`` does not."""
        self._permission = replace(self._permission, stopping=kind)
        await self._notify()

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
        self._in_hand.difference_update(outcome.request_id for outcome in outcomes)
        self._untaken += outcomes
        for _, written in batch:
            if not written.done():
                written.set_result(None)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
