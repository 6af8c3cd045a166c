"""One request to the teacher: sent, tried again where that can help, and turned into an outcome.

Errors are of three kinds: those that another attempt may mend (rate limit, server error, time-out, lost connection),
those that concern this request alone (its outcome is an error, the run goes on), and those that every request would
meet (key, model, settings), which stop the run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.teacher import Teacher, fatal, http_client, reason, words

_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_LEAST_TOKENS = 64
_FATAL_STATUS = (401, 403, 404)


class TeacherClient:
    """An asynchronous client that many requests share. Belongs to one event loop."""

    def __init__(
        self,
        teacher: Teacher,
        sampling: Mapping[str, Any],
        environ: Mapping[str, str],
        *,
        timeout: float | None,
        max_retries: int,
    ) -> None:
        """Make a client.

        Args:
            sampling: ``temperature``, ``top_p``, ``max_tokens`` and ``stop``, sent as they are.
            timeout: seconds for one attempt; None where it may take as long as it does.
            max_retries: further attempts after the first.
        """
        import openai

        self._openai = openai
        self._teacher = teacher
        self._sampling = dict(sampling)
        self._max_retries = max_retries
        self._client = openai.AsyncOpenAI(
            **teacher.client_options(environ),
            timeout=timeout,
            http_client=http_client(teacher, openai, "DefaultAsync"),
        )
        self._not_before = 0.0  # a Retry-After that one request was told holds for all of this client's
        self._answered = False
        self._draining = asyncio.Event()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def drain(self) -> None:
        """Let attempts that are under way come back, and make no further ones."""
        self._draining.set()

    async def ask(self, request_id: int, seed_ids: list[str], prompt_sha: str, prompt: str) -> Outcome | None:
        """Send one request and return what came of it; None where the client was drained before an answer came.

        Raises:
            TeacherError: the endpoint refuses in a way that every request would meet.
        """
        started = time.monotonic()
        failures: Counter[str] = Counter()
        sampling = dict(self._sampling)
        error, message = "", ""
        answer: dict[str, Any] = {}
        while True:
            if not await self._pause(self._not_before - time.monotonic()):
                return None
            try:
                answer = await self._send(prompt, sampling)
                self._answered = True
                error = ""
                break
            except (self._openai.APIError, ValueError) as raised:  # ValueError: a body that is no JSON
                error, message, again, wait = self._judge(raised, sum(failures.values()))
                failures[error] += 1
                if error == "too_long" and sampling["max_tokens"] > _LEAST_TOKENS:
                    # As the original does: ask for less until prompt and answer fit the model's context.
                    sampling["max_tokens"] = max(_LEAST_TOKENS, int(sampling["max_tokens"] * 0.8))
                elif not again or sum(failures.values()) > self._max_retries:
                    break
                if not await self._pause(wait):
                    return None
        if not error and answer["text"] is None:
            error, message = "no_text", "the answer holds no text"
            failures[error] += 1
        return Outcome(
            request_id=request_id,
            seed_ids=seed_ids,
            prompt_sha=prompt_sha,
            model=self._teacher.model,
            seconds=round(time.monotonic() - started, 4),
            error=error or None,
            message=message if error else None,
            failures=dict(failures),
            **answer,
        )

    async def _send(self, prompt: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
        if self._teacher.api == "chat":
            messages: Any = [{"role": "user", "content": prompt}]
            reply: Any = await self._client.chat.completions.create(
                model=self._teacher.model, messages=messages, **sampling
            )
        else:
            reply = await self._client.completions.create(model=self._teacher.model, prompt=prompt, **sampling)
        choices = getattr(reply, "choices", None)
        usage = getattr(reply, "usage", None)
        counted = {name: getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
        choice = choices[0] if choices else None
        text = None
        if choice is not None:
            text = choice.message.content if self._teacher.api == "chat" else choice.text
        return {
            "text": text or None,
            "finish_reason": getattr(choice, "finish_reason", None),
            "usage": {name: count for name, count in counted.items() if count is not None},
        }

    def _judge(self, error: Any, attempt: int) -> tuple[str, str, bool, float]:
        """Return an error's kind and words, whether to try again, and how many seconds to wait before."""
        openai = self._openai
        wait = random.uniform(0.5, 1.0) * min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt)
        if isinstance(error, openai.APITimeoutError):
            return "timeout", "no answer in time", True, wait
        if isinstance(error, openai.APIConnectionError):
            return "connection", reason(error), True, wait
        if not isinstance(error, openai.APIStatusError):
            return "bad_answer", str(error)[:500], True, wait
        status, said = error.status_code, words(error)
        if status == 429 and getattr(error, "code", None) == "insufficient_quota":
            raise fatal(self._teacher, error)
        if status in (408, 409, 429) or status >= 500:
            told = retry_after(error.response.headers)
            if told is not None:
                wait = max(wait, told)
                self._not_before = max(self._not_before, time.monotonic() + told)
            return ("rate_limit" if status == 429 else f"status_{status}"), said, True, wait
        if "context length" in said or "reduce your prompt" in said.lower():
            return "too_long", said, False, 0.0
        if status in _FATAL_STATUS or not self._answered:
            raise fatal(self._teacher, error)
        return f"status_{status}", said, False, 0.0

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether to go on: a client that is drained does not."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), seconds)
        return not self._draining.is_set()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, or None (``Retry-After``: seconds or date; ``retry-after-ms``)."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, TypeError, ValueError):
        return None
