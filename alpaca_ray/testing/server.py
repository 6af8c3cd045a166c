"""The stand-in teacher as an ASGI application: what it is asked, what it answers, what it counts."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from alpaca_ray.testing.arrivals import Arrivals
from alpaca_ray.testing.checks import BadRequestError, check_body, stats_arguments
from alpaca_ray.testing.connections import Connection, Connections
from alpaca_ray.testing.quota import Quota, retry_header
from alpaca_ray.testing.replies import count_tokens, longest_answer, make_reply, reply_body
from alpaca_ray.testing.stand_in import ATTEMPT_FAULTS, StandIn
from alpaca_ray.testing.wire import (
    Receive,
    Send,
    error_body,
    model_body,
    parsed,
    prompt_of,
    read_body,
    respond,
    send_bytes,
    start_reply,
)

_COMPLETIONS = {"/v1/completions": False, "/v1/chat/completions": True}
DROPPED = 0
GONE = -1  # the client went away before the answer


class StandInServer:
    """The server's state: what it was asked, and where it listens.

    Attributes:
        url: base URL for the openai package.
        prompts: prompt (its digest where nothing is remembered) to number of attempts that reached it.
        answered: prompt to number of complete answers.
        statuses: HTTP status (0: dropped, -1: the client had gone) to number of attempts.
        faults: name of a fault to the number of attempts that met it; ``limit`` counts refusals by a rate limit.
        seen: every request's body, in order.
    """

    def __init__(self, settings: StandIn) -> None:
        self.settings = settings
        self.url = ""
        self.prompts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        self.arrivals = Arrivals()
        self.connections = Connections()
        self._quota = Quota(settings)
        self._admitted: Counter[str] = Counter()

    @property
    def most_at_once(self) -> int:
        """The most requests that were under way at once."""
        return self.arrivals.most_at_once

    def stats(self, *, at_least: int | None = None, skip: float = 0.0) -> dict[str, Any]:
        """Return what ``/stats`` answers (see ``Arrivals.load`` for the arguments)."""
        return {
            "attempts": sum(self.prompts.values()),
            "prompts": len(self.prompts),
            "answered": sum(self.answered.values()),
            "answered_more_than_once": sum(count > 1 for count in self.answered.values()),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "faults": dict(sorted(self.faults.items())),
            "tokens": dict(self.tokens),
            "most_at_once": self.most_at_once,
            "arrivals": len(self.arrivals),
            "most_in_60_seconds": self.arrivals.most_within(60.0),
            "most_in_1_second": self.arrivals.most_within(1.0),
            "arrivals_per_minute": self.arrivals.per_minute(),
            **self.arrivals.load(at_least=at_least, skip=skip),
        }

    async def app(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve a request: the ASGI application, without a framework, which would cost more than the answers do."""
        path, method = scope["path"], scope["method"]
        authorization = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if path == "/stats":
            await self._say_stats(scope["query_string"], send)
        elif path == "/v1/models" and method == "GET":
            refusal = self._wrong_key(authorization)
            models = {"object": "list", "data": [model_body(name) for name in self.settings.models]}
            await respond(send, *(refusal or (200, models)))
        elif path in _COMPLETIONS and method == "POST":
            content = await read_body(receive)
            self.arrivals.arrive()
            try:
                await self._serve(content, authorization, _COMPLETIONS[path], self.connections.of(scope), send)
            finally:
                self.arrivals.leave()
        else:
            await respond(send, 404, error_body(f"There is no {method} {path}.", code="not_found"))

    async def _say_stats(self, query: bytes, send: Send) -> None:
        """Answer ``/stats``. It is no request to a teacher, and not counted as one."""
        try:
            arguments = stats_arguments(query)
        except BadRequestError as error:
            await respond(send, 400, error_body(str(error), param=error.param, code=error.code))
            return
        await respond(send, 200, self.stats(**arguments))

    async def _serve(
        self, content: bytes, authorization: bytes | None, chat: bool, connection: Connection, send: Send
    ) -> None:
        body = parsed(content)
        prompt = prompt_of(body, chat=chat)
        if prompt is None:
            status, said = 400, error_body("The body is no request that this API knows.", code="invalid_request")
        elif refusal := self._wrong_key(authorization) or self._refusal(body, chat=chat):
            status, said = refusal
        else:
            await self._answer(prompt, body, chat, connection, send)
            return
        await self._say(send, status, said)

    async def _answer(self, prompt: str, body: dict[str, Any], chat: bool, connection: Connection, send: Send) -> None:
        settings = self.settings
        key = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        name = prompt if settings.remember else key
        if settings.remember:
            self.seen.append(body)
        self.prompts[name] += 1
        reply = make_reply(settings, key, prompt, body)
        weight = reply.tokens
        if settings.tokens_counted == "asked":
            weight = count_tokens(prompt) + (longest_answer(body) or 0)
        over = self._quota.admit(weight, self.arrivals.at_once - 1)
        headers = self._quota.headers()
        if over is not None:
            self.faults["limit"] += 1
            headers |= retry_header(over.wait, settings.retry_after_form)
            said = error_body(over.message, kind="requests", code="rate_limit_exceeded")
            await self._say(send, 429, said, headers)
            return
        # Attempts that a limit refused do not count here: how many there are depends on the time.
        rng = random.Random(f"{settings.seed}:{self._admitted[name]}:{key}")
        self._admitted[name] += 1
        if not await connection.sleep(self._latency(rng)):
            self.statuses[GONE] += 1
            return
        fault = self._fault(rng)
        if fault is not None:
            self.faults[fault.removeprefix("rate_")] += 1
        if fault in _FAILS:
            status, words, kind, code = _FAILS[fault]
            if fault in _WAITS:
                headers |= retry_header(settings.retry_after, settings.retry_after_form)
            await self._say(send, status, error_body(words, kind=kind, code=code), headers)
            return
        content = json.dumps(reply_body(reply, body["model"], len(self.arrivals), chat=chat)).encode()
        if fault is not None:
            await self._spoil(fault, content, headers, connection, send)
            return
        # Counted before it is sent: whoever has the answer finds it counted.
        self.statuses[200] += 1
        self.answered[name] += 1
        self.tokens.update(prompt=reply.prompt_tokens, completion=reply.completion_tokens)
        await send_bytes(send, 200, content, headers)

    async def _spoil(
        self, fault: str, content: bytes, headers: Mapping[str, str], connection: Connection, send: Send
    ) -> None:
        """Send an answer in such a way that no client can use it."""
        half = content[: len(content) // 2]
        if fault == "rate_truncated_json":
            self.statuses[200] += 1
            await send_bytes(send, 200, half, headers)
        elif fault == "rate_drip":
            await start_reply(send, 200, len(content), headers)
            for place in range(len(content)):
                await send({"type": "http.response.body", "body": content[place : place + 1], "more_body": True})
                if not await connection.sleep(self.settings.drip):
                    self.statuses[GONE] += 1
                    return
            self.statuses[200] += 1
            await send({"type": "http.response.body", "body": b""})
        else:
            self.statuses[DROPPED] += 1
            if fault == "rate_drop_body":
                await start_reply(send, 200, len(content), headers)
                await send({"type": "http.response.body", "body": half, "more_body": True})
            await connection.drop()

    async def _say(
        self, send: Send, status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        self.statuses[status] += 1
        await respond(send, status, content, headers)

    def _latency(self, rng: random.Random) -> float:
        settings = self.settings
        seconds = settings.latency + settings.jitter * rng.random()
        if settings.latency_median is not None:
            seconds += settings.latency_median * rng.lognormvariate(0.0, settings.sigma)
        return seconds

    def _fault(self, rng: random.Random) -> str | None:
        draw = rng.random()
        for name in ATTEMPT_FAULTS:
            share = getattr(self.settings, name)
            if draw < share:
                return name
            draw -= share
        return None

    def _wrong_key(self, authorization: bytes | None) -> tuple[int, dict[str, Any]] | None:
        key = self.settings.key
        if key is None or authorization == f"Bearer {key}".encode():
            return None
        return 401, error_body("Incorrect API key provided.", code="invalid_api_key")

    def _refusal(self, body: Mapping[str, Any], *, chat: bool) -> tuple[int, dict[str, Any]] | None:
        try:
            check_body(body, chat=chat)
        except BadRequestError as error:
            return 400, error_body(str(error), param=error.param, code=error.code)
        if body["model"] not in self.settings.models:
            words = f"The model '{body['model']}' does not exist."
            return 404, error_body(words, kind="not_found", code="model_not_found")
        for name in self.settings.refused:
            if body.get(name) is not None:
                words = f"Unsupported parameter: this model does not take '{name}'."
                if name == "max_tokens":
                    words += " Use 'max_completion_tokens' instead."
                return 400, error_body(words, param=name, code="unsupported_parameter")
        return None


_FAILS = {
    "rate_429": (429, "Rate limit reached.", "requests", "rate_limit_exceeded"),
    "rate_500": (500, "The server had an error.", "server_error", None),
    "rate_503": (503, "The server is overloaded.", "server_error", None),
}
_WAITS = ("rate_429", "rate_503")
