"""What ASGI does not tell a server about its connections: how to drop one, and that its client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any


class Connection:
    """An open connection of a client."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._waiter: asyncio.Future[bool] | None = None
        self._lost = False

    @property
    def gone(self) -> bool:
        """Whether the connection is closed, from either side."""
        return self._transport.is_closing()

    async def drop(self) -> None:
        """Close the connection, whatever has been promised on it, and wait until it is closed."""
        self._transport.close()
        if not self._lost:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def sleep(self, seconds: float) -> bool:
        """Wait; return at once, and False, when the client goes away."""
        if seconds > 0 and not self.gone:
            loop = asyncio.get_running_loop()
            self._waiter = waiter = loop.create_future()
            timer = loop.call_later(seconds, _wake, waiter, True)
            try:
                return await waiter
            finally:
                timer.cancel()
                self._waiter = None
        return not self.gone

    def lost(self) -> None:
        """Wake whoever waits: the connection is closed."""
        self._lost = True
        if self._waiter is not None:
            _wake(self._waiter, False)


class Connections:
    """The open connections, by the address that ASGI calls ``client``."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Connection] = {}

    def of(self, scope: Mapping[str, Any]) -> Connection:
        """Return the connection on which a request came."""
        return self._open[tuple(scope["client"])]

    def protocol(self) -> type[asyncio.Protocol]:
        """Return uvicorn's HTTP protocol, made to report here."""
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        known = self._open

        class Watched(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                known[self.client] = Connection(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                connection = known.pop(self.client, None)
                if connection is not None:
                    connection.lost()

        return Watched


def _wake(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)
