"""What tests of generation share: a teacher, a client that asks, and a server that says anything."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alpaca_ray.generate.admission import Failure, Grant, Want
from alpaca_ray.generate.budget import Tokens, prompt_bound
from alpaca_ray.generate.client import Sampling, TeacherClient
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.prompt import Prompt
from alpaca_ray.generate.teacher import Teacher

TEXT = "###\n4. Instruction:"
BOUND = prompt_bound(TEXT)


class Asked:
    """A client's requests, each granted at once; what it wished for and what it reported is kept."""

    def __init__(self, grant: Callable[[Want], Awaitable[Grant | None]] | None = None) -> None:
        self.wants: list[Want] = []
        self.failures: list[Failure] = []
        self._grant = grant

    async def permit(self, want: Want) -> Grant | None:
        self.wants.append(want)
        return Grant(want.request_id, 0) if self._grant is None else await self._grant(want)

    async def failed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def outcomes(
        self,
        teachers: Teacher | Sequence[Teacher],
        *texts: str,
        environ: Mapping[str, str] | None = None,
        sampling: Sampling | None = None,
        timeout: float = 30.0,
        max_retries: int = 8,
    ) -> list[Outcome]:
        """Send prompts of these texts at once; return what came of them."""

        async def scene() -> list[Outcome]:
            client = TeacherClient(
                [teachers] if isinstance(teachers, Teacher) else teachers,
                dict.fromkeys(("chat", "completions"), sampling or Sampling({"temperature": 1.0}, 500)),
                environ or {},
                timeout=timeout,
                max_retries=max_retries,
            )
            prompts = [Prompt(number, ["a"], text) for number, text in enumerate(texts or (TEXT,))]
            try:
                found = await asyncio.gather(*[client.ask(one, self.permit, self.failed) for one in prompts])
            finally:
                await client.close()
            return [outcome for outcome in found if outcome is not None]

        return asyncio.run(scene())


class Scripted:
    """An HTTP server that answers its requests in turn with what a test lists; the last again and again."""

    def __init__(self, *replies: tuple[int, Any] | tuple[int, Any, Mapping[str, str]]) -> None:
        self.replies = replies
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.url = ""

    def next(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, Mapping[str, str]]:
        self.bodies.append(json.loads(body or b"{}"))
        self.headers.append(headers)
        status, content, *more = self.replies[min(len(self.bodies), len(self.replies)) - 1]
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return status, data, more[0] if more else {}


@contextmanager
def scripted(*replies: tuple[int, Any] | tuple[int, Any, Mapping[str, str]]) -> Iterator[Scripted]:
    """Run such a server."""
    script = Scripted(*replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, data, headers = script.next(body, dict(self.headers))
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def teacher_at(url: str, **given: Any) -> Teacher:
    """Return a teacher at an address."""
    return Teacher(url, **{"model": "stand-in", "api": "completions", "key_env": "KEY", **given})


def usage_of(tokens: Tokens) -> dict[str, int]:
    """Return token counts as the API writes them."""
    return {"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion}


def completion(text: Any, **given: Any) -> dict[str, Any]:
    """Return the body of an answer through the completions API."""
    counted = {"prompt_tokens": 5, "completion_tokens": 7}
    return {"choices": [{"text": text, "finish_reason": "stop"}], "usage": counted, **given}
