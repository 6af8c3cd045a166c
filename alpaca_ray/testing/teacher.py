"""A stand-in teacher: an OpenAI-compatible HTTP server with a seeded supply of answers and settable misbehaviour.

``python -m alpaca_ray.testing.teacher --port 8001 --latency 0.5`` runs it; ``with standin(StandIn()) as server`` runs
it in a thread of a test.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from alpaca_ray.errors import SettingsError, run_main
from alpaca_ray.settings.base import Settings, setting
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.testing.supply import Faults, answer

_NEXT_TASK = re.compile(r"(\d+)\. Instruction:\s*$")


class StandIn(Settings):
    """How the stand-in teacher answers, and how it fails."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(0, "Port to listen on; 0 takes a free one and prints it.", ge=0, le=65535)
    models: list[str] = setting(["stand-in"], "Models that it lists; a request for another is answered 404.")
    key: str | None = setting(None, "Key that it demands; without one it takes any.")
    seed: int = setting(0, "Seed of its answers: seed and prompt fix the text.")
    tasks: int = setting(6, "Tasks in an answer.", ge=1)
    latency: float = setting(0.0, "Seconds before it answers.", group="misbehaviour", ge=0)
    jitter: float = setting(0.0, "Further seconds at most, drawn for each request.", group="misbehaviour", ge=0)
    rate_429: float = setting(0.0, "Share of attempts answered 429.", group="misbehaviour", ge=0, le=1)
    retry_after: float | None = setting(None, "Retry-After that a 429 carries, in seconds.", group="misbehaviour", ge=0)
    rate_500: float = setting(0.0, "Share of attempts answered 500.", group="misbehaviour", ge=0, le=1)
    rate_drop: float = setting(0.0, "Share of attempts whose connection is dropped.", group="misbehaviour", ge=0, le=1)
    rate_empty: float = setting(0.0, "Share of prompts answered without any choice.", group="misbehaviour", ge=0, le=1)
    bad_tasks: bool = setting(True, "Whether a share of the tasks is bad, as real teachers' are.", group="misbehaviour")


class StandInServer:
    """The server's state: what it was asked, and where it listens.

    Attributes:
        url: base URL for the openai package.
        prompts: prompt to number of attempts that reached it.
        answered: prompt to number of complete answers.
        statuses: HTTP status (0: dropped) to number of attempts.
        seen: every request's body, in order.
    """

    def __init__(self, settings: StandIn) -> None:
        self.settings = settings
        self.url = ""
        self.prompts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.seen: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._at_once = 0

    def app(self) -> Any:
        """Return the ASGI application."""
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import JSONResponse, StreamingResponse
        from starlette.routing import Route

        async def models(request: Request) -> Any:
            if refusal := self._refusal(request.headers.get("authorization"), None):
                return JSONResponse(refusal[1], status_code=refusal[0])
            return JSONResponse({"object": "list", "data": [_model(name) for name in self.settings.models]})

        async def complete(request: Request) -> Any:
            body = await request.json()
            if refusal := self._refusal(request.headers.get("authorization"), body):
                self.statuses[refusal[0]] += 1
                return JSONResponse(refusal[1], status_code=refusal[0])
            chat = request.url.path.endswith("/chat/completions")
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                status, content, headers = await self._answer(body, chat=chat)
            finally:
                self._at_once -= 1
            self.statuses[status] += 1
            if status == 0:
                return StreamingResponse(_broken(), headers={"content-length": "1000"}, media_type="application/json")
            return JSONResponse(content, status_code=status, headers=headers)

        async def stats(request: Request) -> Any:
            return JSONResponse(
                {
                    "attempts": sum(self.prompts.values()),
                    "prompts": len(self.prompts),
                    "answered": sum(self.answered.values()),
                    "statuses": {str(status): count for status, count in self.statuses.items()},
                    "most_at_once": self.most_at_once,
                }
            )

        return Starlette(
            routes=[
                Route("/v1/models", models),
                Route("/v1/completions", complete, methods=["POST"]),
                Route("/v1/chat/completions", complete, methods=["POST"]),
                Route("/stats", stats),
            ]
        )

    def _refusal(self, authorization: str | None, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]] | None:
        key = self.settings.key
        if key is not None and authorization != f"Bearer {key}":
            return 401, _error("Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
        if body is not None and body.get("model") not in self.settings.models:
            return 404, _error(f"The model '{body.get('model')}' does not exist.", "not_found", "model_not_found")
        return None

    async def _answer(self, body: dict[str, Any], *, chat: bool) -> tuple[int, Any, dict[str, str]]:
        settings = self.settings
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        self.seen.append(body)
        attempt = self.prompts[prompt]
        self.prompts[prompt] += 1
        rng = random.Random(f"{settings.seed}:{attempt}:{prompt}")
        await asyncio.sleep(settings.latency + settings.jitter * rng.random())
        draw = rng.random()
        if draw < settings.rate_429:
            headers = {} if settings.retry_after is None else {"retry-after": f"{settings.retry_after:g}"}
            return 429, _error("Rate limit reached.", "requests", "rate_limit_exceeded"), headers
        if (draw := draw - settings.rate_429) < settings.rate_500:
            return 500, _error("The server had an error.", "server_error", None), {}
        if draw - settings.rate_500 < settings.rate_drop:
            return 0, None, {}
        self.answered[prompt] += 1
        return 200, self._body(prompt, body, chat=chat), {}

    def _body(self, prompt: str, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        settings = self.settings
        found = _NEXT_TASK.search(prompt)
        faults = Faults() if settings.bad_tasks else Faults(0, 0, 0, 0, 0, 0)
        text = answer(
            prompt, seed=settings.seed, first_number=int(found[1]) if found else 1, tasks=settings.tasks, faults=faults
        )
        text, finish_reason = _cut(text, body.get("stop") or [], body.get("max_tokens"))
        choice = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        empty = random.Random(f"{settings.seed}:empty:{prompt}").random() < settings.rate_empty
        tokens = {"prompt_tokens": _count(prompt), "completion_tokens": 0 if empty else _count(text)}
        return {
            "id": f"standin-{sum(self.answered.values())}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [] if empty else [choice],
            "usage": {**tokens, "total_tokens": sum(tokens.values())},
        }


@contextmanager
def standin(settings: StandIn | None = None) -> Iterator[StandInServer]:
    """Run a stand-in teacher in a thread and yield it, listening; it is stopped at the end."""
    import uvicorn

    server = StandInServer(settings or StandIn())
    listener = _listen(server.settings)
    server.url = f"http://{server.settings.host}:{listener.getsockname()[1]}/v1"
    config = uvicorn.Config(server.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        runner.should_exit = True
        thread.join()
        listener.close()


def _listen(settings: StandIn) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"--host {settings.host} --port {settings.port}: {error.strerror}") from error
    listener.listen(1024)
    return listener


def _cut(text: str, stop: str | list[str], max_tokens: int | None) -> tuple[str, str]:
    """Return the text up to the first stop text or the length limit, and why it ends there."""
    found = [text.find(mark) for mark in ([stop] if isinstance(stop, str) else stop)]
    ends = [place for place in found if place >= 0]
    text = text[: min(ends)] if ends else text
    if max_tokens is not None and _count(text) > max_tokens:
        return text[: 4 * max_tokens], "length"
    return text, "stop"


def _count(text: str) -> int:
    """Return a token count: four characters each, as English text has them."""
    return -(-len(text) // 4)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "alpaca-ray"}


def _error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _broken() -> AsyncIterator[bytes]:
    yield b'{"id": "'
    raise ConnectionResetError("dropped on purpose")


def main() -> None:
    """Run the stand-in teacher until it is interrupted."""
    settings = parse_settings(StandIn, description="A stand-in teacher: an OpenAI-compatible server for tests.")
    with standin(settings) as server:
        print(f"stand-in teacher at {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    run_main(main)
