"""One request to the teacher: sent, tried again where that can help, and turned into an outcome.

Errors are of three kinds: those that another attempt may mend (rate limit, server error, time-out, lost connection),
those that concern this request alone (its outcome is an error, the run goes on), and those that every request would
meet (key, model, settings), which stop the run.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from alpaca_ray.generate.admission import Failure, Grant, Want
from alpaca_ray.generate.budget import Tokens, prompt_bound
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.prompt import Prompt
from alpaca_ray.generate.teacher import Teacher, http_client
from alpaca_ray.generate.verdict import AttemptError, Endpoint, judge, read_answer, why_no_text

_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_LEAST_TOKENS = 64
_LATE = 0.2  # seconds behind its time from which a request under a rate limit asks for another
_HELD_UP = 10  # times that it does
_NOT_COUNTED = ("rate_limit", "length_parameter", "too_long")  # as retries


@dataclass(frozen=True)
class Sampling:
    """What is asked of the model beside the prompt.

    Attributes:
        parameters: sent as they are (``temperature``, ``top_p``, ``stop``, ``response_format``, ...).
        max_tokens: the longest answer.
        extra_body: further fields of the request's body.
        send_length: False where the endpoint takes no parameter for the longest answer.
    """

    parameters: Mapping[str, Any]
    max_tokens: int
    extra_body: Mapping[str, Any] | None = None
    send_length: bool = True


class TeacherClient:
    """An asynchronous client that many requests share. Belongs to one event loop."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        sampling: Mapping[str, Sampling],
        environ: Mapping[str, str],
        *,
        timeout: float | None,
        max_retries: int,
        answered: bool = False,
    ) -> None:
        """Make a client.

        Args:
            teachers: the endpoints; a grant names one by its index.
            sampling: for each API of theirs; ``max_tokens`` is the same in all.
            environ: where the keys are.
            timeout: seconds for one attempt; None where it may take as long as it does.
            max_retries: further attempts after the first; those after a rate limit do not count.
            answered: the endpoints have answered others before.
        """
        import httpx2
        import openai

        self._openai = openai
        self._response = httpx2.Response
        self._sampling = sampling
        self._timeout = timeout
        self._max_retries = max_retries
        self._endpoints = [
            Endpoint(
                teacher,
                openai.AsyncOpenAI(
                    **teacher.client_options(environ),
                    timeout=timeout,
                    http_client=http_client(teacher, openai, "DefaultAio"),
                ),
                answered=answered,
            )
            for teacher in teachers
        ]
        self._draining = asyncio.Event()

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            await endpoint.client.close()

    def drain(self) -> None:
        """Let attempts that are under way come back, and make no further ones."""
        self._draining.set()

    async def ask(
        self,
        prompt: Prompt,
        permit: Callable[[Want], Awaitable[Grant | None]],
        failed: Callable[[Failure], Awaitable[None]],
    ) -> Outcome | None:
        """Send one request and return what came of it; None where the run stopped before an answer came.

        Args:
            permit: returns the permission for an attempt, or None where there will be none.
            failed: told of every attempt that brought no answer, before the next one.

        Raises:
            TeacherError: the endpoint refuses in a way that every request would meet.
        """
        started: float | None = None
        failures: Counter[str] = Counter()
        lost = Tokens()
        held_up = 0
        max_tokens = next(iter(self._sampling.values())).max_tokens
        bound = prompt_bound(prompt.text)
        while True:
            worst = Tokens(bound, max_tokens)
            grant = await permit(Want(prompt.request_id, worst))
            if grant is None:
                return None
            going = await self._pause(grant.at - time.time())
            late = bool(grant.at) and time.time() - grant.at > _LATE and held_up < _HELD_UP
            if not going or late:
                await failed(Failure(prompt.request_id, "not_sent"))
                if not going:
                    return None
                held_up += 1
                continue
            endpoint = self._endpoints[grant.endpoint]
            started = started or time.monotonic()
            try:
                answer = await self._send(endpoint, prompt.text, max_tokens)
                endpoint.answered = True
                error, message = (None, None) if answer["text"] is not None else why_no_text(answer)
                break
            except AttemptError as verdict:
                error, message = verdict.kind, verdict.message
                failures[error] += 1
                lost += worst if verdict.lost else Tokens()
                await failed(Failure(prompt.request_id, error, message, verdict.lost, verdict.retry_after))
                counted = sum(count for kind, count in failures.items() if kind not in _NOT_COUNTED)
                answer = {"text": None}
                if error == "too_long" and max_tokens > _LEAST_TOKENS:
                    # As the original does: ask for less until prompt and answer fit the model's context.
                    max_tokens = max(_LEAST_TOKENS, int(max_tokens * 0.8))
                elif not verdict.again or counted > self._max_retries:
                    break
                elif error != "length_parameter" and not await self._pause(_wait(failures, verdict.retry_after)):
                    return None
        if error is not None and not failures[error]:
            failures[error] += 1
        answer.pop("refusal", None)
        failures.pop("length_parameter", None)
        came = "finish_reason" in answer
        bounds = _as_usage(_bound(worst, answer["text"])) if came else {}
        estimated = {name: bound for name, bound in bounds.items() if name not in answer["usage"]}
        return Outcome(
            request_id=prompt.request_id,
            seed_ids=prompt.seed_ids,
            prompt_sha=prompt.digest,
            model=endpoint.teacher.model,
            seconds=round(time.monotonic() - started, 4),
            error=error,
            message=message,
            failures=dict(failures),
            estimated=estimated,
            lost=_as_usage(lost) if lost.total else {},
            **answer,
        )

    async def _send(self, endpoint: Endpoint, prompt: str, max_tokens: int) -> dict[str, Any]:
        teacher = endpoint.teacher
        sampling = self._sampling[teacher.api]
        length = endpoint.length
        body: dict[str, Any] = {"model": teacher.model, **sampling.parameters}
        extra = sampling.extra_body or {}
        if sampling.send_length:
            body[length] = max_tokens
        if teacher.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        try:
            # The package's own request method, without its pydantic types: at hundreds of answers a second they are
            # half of the work.
            # The package's own time-out starts anew with every byte: an answer that drips would never end.
            async with asyncio.timeout(self._timeout):
                path = _PATHS[teacher.api]
                reply = await endpoint.client.post(path, cast_to=self._response, body={**body, **extra})
            return read_answer(json.loads(reply.content))
        except TimeoutError as error:
            raise AttemptError("timeout", "no answer in time", lost=True) from error
        except (self._openai.APIError, ValueError) as error:  # ValueError: a body that is no JSON, or not the API's
            raise judge(endpoint, error, length) from error

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether to go on: a client that is drained does not."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), seconds)
        return not self._draining.is_set()


def _wait(failures: Counter[str], told: float | None) -> float:
    """Return the seconds before the next attempt: exponential with jitter, and no less than the server asked for."""
    wait = random.uniform(0.5, 1.0) * min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(16, sum(failures.values()) - 1))
    return max(wait, told or 0.0)


def _bound(worst: Tokens, text: str | None) -> Tokens:
    if text is None:  # it may have thought to the last token
        return worst
    return Tokens(worst.prompt, min(worst.completion, len(text.encode("utf-8", "surrogatepass"))))


def _as_usage(tokens: Tokens) -> dict[str, int]:
    return {"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion}
