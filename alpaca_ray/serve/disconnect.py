"""A client that goes away ends its request, whatever headers it sent. Pure ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Serve leaves the requests of clients running that send this header: theirs would hold a place in the batch.
_HEADER = b"x-request-disconnect-disabled"


class CancelOnDisconnect:
    """ASGI middleware that reads ahead for the disconnect message and cancels the request when it comes."""

    def __init__(self, app: Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Run the wrapped application; a request whose client has left ends silently."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name.lower() != _HEADER]}
        messages: asyncio.Queue[Message] = asyncio.Queue()

        async def read() -> None:
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return

        reader = asyncio.ensure_future(read())
        request = asyncio.ensure_future(self._app(scope, messages.get, send))
        try:
            await asyncio.wait({reader, request}, return_when=asyncio.FIRST_COMPLETED)
            if not request.done() and not reader.cancelled() and reader.exception() is None:
                request.cancel()
                with suppress(asyncio.CancelledError):
                    await request
                return
            await request
        finally:
            for task in (reader, request):
                task.cancel()
            await asyncio.gather(reader, request, return_exceptions=True)
