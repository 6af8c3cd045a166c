"""What comes back from an endpoint: an answer, or an error that concerns one attempt, one request, or all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from alpaca_ray.generate.teacher import Teacher, fatal, reason, words

# 403 is not among them: gateways refuse single prompts with it. A key that may do nothing has no answer before it.
_FATAL_STATUS = (401, 404)
# A gateway that did not wait for the model, which may have answered, and charges for it.
_GAVE_UP_WAITING = frozenset({408, 502, 504, *range(520, 525)})
# What aiohttp raises where no connection came about. All else may come after the request has left.
_NEVER_LEFT = frozenset({"ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"})


@dataclass
class Endpoint:
    """A teacher's client, and what it has taught us about itself.

    Attributes:
        length: parameter of the longest answer; newer models take ``max_completion_tokens``.
        answered: it has answered before: what it refuses now is that request, and not the way it is asked.
    """

    teacher: Teacher
    client: Any
    length: str = "max_tokens"
    answered: bool = False


class AttemptError(Exception):
    """What a failed attempt means.

    Attributes:
        kind: such as ``rate_limit``.
        again: another attempt may help.
        lost: nobody knows whether the endpoint charges for it.
        retry_after: seconds that the endpoint asked to wait.
    """

    def __init__(
        self, kind: str, message: str, *, again: bool = True, lost: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.again = again
        self.lost = lost
        self.retry_after = retry_after


def judge(endpoint: Endpoint, error: Any, length: str) -> AttemptError:
    """Return what an error of the openai package means for the request that met it.

    Args:
        error: of the package, or a ``ValueError`` where the body is no answer.
        length: parameter of the longest answer that the request had.

    Raises:
        TeacherError: every request would meet it.
    """
    import openai

    if isinstance(error, openai.APIConnectionError):  # a time-out is one too
        cause = _innermost(error)
        # Where the connection broke after the request had left, the endpoint may have answered, and charge for it.
        lost = type(cause).__name__ not in _NEVER_LEFT
        if isinstance(cause, TimeoutError):
            return AttemptError("timeout", "no answer in time", lost=lost)
        return AttemptError("connection", reason(error), lost=lost)
    if not isinstance(error, openai.APIStatusError):
        return AttemptError("bad_answer", str(error)[:500], lost=True)
    status, said = error.status_code, words(error)
    if status == 429 and getattr(error, "code", None) == "insufficient_quota":
        raise fatal(endpoint.teacher, error)
    if status in (408, 409, 429) or status >= 500:
        kind = "rate_limit" if status == 429 else f"status_{status}"
        told = retry_after(error.response.headers)
        return AttemptError(kind, said, lost=status in _GAVE_UP_WAITING, retry_after=told)
    if getattr(error, "code", None) == "content_filter" or "content_filter" in said:
        return AttemptError("refusal", said, again=False)
    if length == "max_tokens" and "max_completion_tokens" in said:
        endpoint.length = "max_completion_tokens"
        return AttemptError("length_parameter", said)
    if "context length" in said or "reduce your prompt" in said.lower():
        return AttemptError("too_long", said, again=False)
    if status in _FATAL_STATUS or not endpoint.answered:
        raise fatal(endpoint.teacher, error)
    return AttemptError(f"status_{status}", said, again=False)


def read_answer(reply: Any) -> dict[str, Any]:
    """Return text, finish reason, usage and refusal of a response; what is missing is None or empty.

    Raises:
        ValueError: it has not the API's form.
    """
    try:
        choices = reply.get("choices") or [{}]
        message = choices[0].get("message") or {}
        text = message.get("content") if message else choices[0].get("text")
        usage = reply.get("usage") or {}
        counted = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        if not isinstance(text, str | None) or not all(isinstance(count, int | None) for count in counted.values()):
            raise ValueError("the answer has a text or a usage of another type than the API's")
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"the answer has not the API's form: {str(reply)[:200]}") from error
    return {
        "text": text or None,
        "finish_reason": choices[0].get("finish_reason"),
        "usage": {name: count for name, count in counted.items() if count is not None},
        "refusal": message.get("refusal"),
    }


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


def _innermost(error: BaseException) -> BaseException:
    """Return aiohttp's own error: the transport between calls a server that hangs up a time-out of the connection."""
    while error.__cause__ is not None and not type(error).__module__.startswith("aiohttp"):
        error = error.__cause__
    return error


def why_no_text(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Return kind and words of an answer without a text."""
    if answer["refusal"] or answer["finish_reason"] == "content_filter":
        return "refusal", answer["refusal"] or "withheld by the endpoint's content filter"
    return "no_text", "the answer holds no text"
