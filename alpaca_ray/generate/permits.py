"""What a client actor knows of the run: what it may send, and whether it is stopping.

Wishes, failures and outcomes of many requests travel together, and one waiting call for each client brings the grants:
the ledger, an actor, can hold a bounded number of calls, and those that wait must never keep out those that work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from alpaca_ray.generate.admission import Failure, Grant, Want
from alpaca_ray.generate.terms import Answer, StopKind

# The ledger ends a waiting call after this many seconds, so that those of clients that have died do not pile up in it.
FOLLOW_SECONDS = 5.0
_AT_ONCE = 3  # calls of a batcher: with one, an answer would wait for the disk to have taken the one before
T = TypeVar("T")


class Batcher(Generic[T]):
    """Sends items together: those that come while a few calls are under way share the next one."""

    def __init__(self, send: Callable[[list[T]], Awaitable[Any]]) -> None:
        self._send = send
        self._items: list[tuple[T, asyncio.Future[None]]] = []
        self._senders = 0
        self._tasks: set[asyncio.Future[None]] = set()

    def put(self, item: T) -> asyncio.Future[None]:
        """Send an item; the result is done when the call that took it has returned, and raises what it raised."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._items.append((item, done))
        if self._senders < _AT_ONCE:
            self._senders += 1
            task = asyncio.ensure_future(self._send_all())
            self._tasks.add(task)  # the loop itself keeps no hold of it
            task.add_done_callback(self._tasks.discard)
        return done

    async def _send_all(self) -> None:
        while self._items:
            batch, self._items = self._items, []
            try:
                await self._send([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - raised by everyone who waits for it
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for _, done in batch:
                if not done.done():
                    done.set_result(None)
        # Here, and not when the task is cleared away: an item that comes in between would wait for nobody.
        self._senders -= 1


class Permits:
    """Asks the ledger for permission, for all the requests of one client. Belongs to one event loop."""

    def __init__(
        self,
        push: Callable[[list[Want], list[Failure]], Awaitable[Any]],
        follow: Callable[[float], Awaitable[Answer]],
        on_stop: Callable[[StopKind], None],
    ) -> None:
        """Make one that has asked for nothing.

        Args:
            push: ``Ledger.push`` of this client.
            follow: ``Ledger.grants`` of this client.
            on_stop: called once, with how the run is stopping.
        """
        self._follow = follow
        self._on_stop = on_stop
        self._stopping: StopKind | None = None
        self._error: Exception | None = None
        self._delays: deque[float] = deque(maxlen=64)
        self._waiting: dict[int, asyncio.Future[Grant | None]] = {}
        self._watch: asyncio.Future[None] | None = None

        async def send(items: list[Want | Failure]) -> None:
            wants = [item for item in items if isinstance(item, Want)]
            await push(wants, [item for item in items if isinstance(item, Failure)])

        self._out: Batcher[Want | Failure] = Batcher(send)

    @property
    def stopping(self) -> bool:
        """Whether nothing more may be sent."""
        return self._stopping is not None

    async def get(self, want: Want) -> Grant | None:
        """Wait until a request may be sent; None where the run is stopping.

        Raises:
            Exception: whatever ended the connection to the ledger.
        """
        if self.stopping:
            return None
        if self._error is not None:
            raise self._error
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._keep_up())
        granted: asyncio.Future[Grant | None] = asyncio.get_running_loop().create_future()
        self._waiting[want.request_id] = granted
        await self._out.put(want)
        return await granted

    async def failed(self, failure: Failure) -> None:
        """Report an attempt that brought no answer; its place is free for another request."""
        await self._out.put(failure)

    async def _keep_up(self) -> None:
        while not self.stopping:
            try:
                answer = await self._follow(FOLLOW_SECONDS)
            except Exception as error:  # noqa: BLE001 - raised by every request that waits
                self._error = error
                for waiting in self._waiting.values():
                    if not waiting.done():
                        waiting.set_exception(error)
                return
            self._stopping = answer.stopping
            # The least that an answer took of late, with the difference of the two clocks, which may be set.
            self._delays.append(time.time() - answer.now)
            behind = min(self._delays)
            for grant in answer.grants:
                found = None if self.stopping else self._waiting.pop(grant.request_id, None)
                if found is not None and not found.done():
                    found.set_result(replace(grant, at=grant.at and grant.at + behind))
                else:  # nobody waits any more: it will not be sent
                    self._out.put(Failure(grant.request_id, "not_sent"))
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(None)
        self._on_stop(self._stopping or "drop")
