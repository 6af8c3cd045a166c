"""What a client actor knows of the run: how far requests may be sent, and whether it is stopping.

One waiting call for each client, however many requests wait in it: the ledger, an actor, can hold a bounded number of
calls, and those that wait must never keep out those that work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from alpaca_ray.generate.ledger import Permission

# The ledger ends a waiting call after this many seconds, so that those of clients that have died do not pile up in it.
FOLLOW_SECONDS = 5.0


class Gate:
    """Follows the ledger's permission for all the requests of one client. Belongs to one event loop."""

    def __init__(
        self, follow: Callable[[Permission, float], Awaitable[Permission]], on_stop: Callable[[Permission], None]
    ) -> None:
        """Make a gate that is shut.

        Args:
            follow: ``Ledger.follow``.
            on_stop: called once, with the permission that says how the run is stopping.
        """
        self._follow = follow
        self._on_stop = on_stop
        self._known = Permission()
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._watch: asyncio.Future[None] | None = None

    @property
    def stopping(self) -> bool:
        """Whether nothing more may be sent."""
        return self._known.stopping is not None

    async def admit(self, request_id: int) -> bool:
        """Wait until a request may be sent; False where the run is stopping.

        Raises:
            Exception: whatever ended the connection to the ledger.
        """
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._keep_up())
        while not self.stopping and request_id >= self._known.limit:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        return not self.stopping

    async def _keep_up(self) -> None:
        while not self.stopping:
            try:
                self._known = await self._follow(self._known, FOLLOW_SECONDS)
            except Exception as error:  # noqa: BLE001 - raised by every request that waits
                self._error = error
            self._changed.set()  # those who wait look now; whoever comes later waits for the next change
            self._changed = asyncio.Event()
            if self._error is not None:
                return
        self._on_stop(self._known)
