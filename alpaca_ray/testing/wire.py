"""Requests and replies of a small ASGI server, as bytes and as OpenAI's API words them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def read_body(receive: Receive) -> bytes:
    """Return the whole body of a request."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def parsed(content: bytes) -> dict[str, Any]:
    """Return a request's JSON object; an empty one where it is none."""
    with suppress(ValueError, RecursionError):  # JSON that is nested too deeply is no request either
        body = json.loads(content)
        if isinstance(body, dict):
            return body
    return {}


def prompt_of(body: Mapping[str, Any], *, chat: bool) -> str | None:
    """Return a request's prompt, or its last message; None where it has none."""
    found = body.get("prompt")
    if chat:
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        found = last.get("content") if isinstance(last, dict) else None
    return found if isinstance(found, str) else None


async def respond(send: Send, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
    """Send a whole reply with a JSON body."""
    await send_bytes(send, status, json.dumps(content).encode(), headers or {})


async def send_bytes(send: Send, status: int, content: bytes, headers: Mapping[str, str]) -> None:
    """Send a whole reply."""
    await start_reply(send, status, len(content), headers)
    await send({"type": "http.response.body", "body": content})


async def start_reply(send: Send, status: int, length: int, headers: Mapping[str, str]) -> None:
    """Send status and headers of a reply whose body has ``length`` bytes."""
    named = {"content-type": "application/json", "content-length": str(length), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})


def model_body(name: str) -> dict[str, Any]:
    """Return a model as a list of models holds it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "alpaca-ray"}


def error_body(
    message: str, *, code: str | None, kind: str = "invalid_request_error", param: str | None = None
) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
