"""What the stand-in teacher says: the text of an answer, its length, and the body of an OpenAI-compatible reply."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpaca_ray.testing.stand_in import StandIn
from alpaca_ray.testing.supply import FAULTLESS, Faults, Task, draw_tasks, numbered

_NEXT_TASK = re.compile(r"([0-9]{1,9})\. Instruction:\s*$")
_CHARACTERS = 4  # of a token, as English text has them
_EVOLVED_LEAKS = 0.04
_MORE = " There is more to say about it, and every part of it is said in its place, one after the other."
_THOUGHT = "The list wants another task, unlike the ones above it, with an answer that can be checked. "
_SAYS_NO = "That is something I do not help with."


@dataclass(frozen=True)
class Reply:
    """An answer before it is put into a body. ``refusal``: the words of a refusal; ``empty``: there is no choice."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    refusal: str | None = None
    empty: bool = False
    usage: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens


def make_reply(settings: StandIn, key: str, prompt: str, body: dict[str, Any]) -> Reply:
    """Return the answer to a request.

    Args:
        key: stands for the prompt in every draw: with the seed it fixes the answer.
        body: of the request, as ``check_body`` lets it pass: ``stop``, ``max_tokens`` or ``max_completion_tokens``,
            ``response_format``.
    """
    rng = random.Random(f"{settings.seed}:prompt:{key}")
    empty, refused, filtered, broken_off, no_usage = (rng.random() for _ in range(5))
    longest = longest_answer(body)
    tokens = None
    if settings.answer_tokens is not None:
        tokens = rng.randint(settings.answer_tokens[0], settings.answer_tokens[-1])
    sentence = _text(settings, key, prompt, body, tokens)
    text, finish_reason = _stopped(sentence, body.get("stop") or []), "stop"
    refusal = None
    if empty < settings.rate_empty:
        text = ""
    elif refused < settings.rate_refusal:
        text, refusal = "", _SAYS_NO
    elif filtered < settings.rate_filtered:
        text, finish_reason = text[: len(text) // 3], "content_filter"
    elif broken_off < settings.rate_length:
        text, finish_reason = text[: rng.randint(1, max(1, len(text) - 1))], "length"
    thought = _thought(settings) if settings.reasoning else ""
    text = thought + text
    if longest is not None and count_tokens(text) > longest:
        text, finish_reason = text[: _CHARACTERS * longest], "length"
    completion = count_tokens(text or refusal or "")
    return Reply(
        text,
        finish_reason,
        count_tokens(prompt),
        completion,
        min(completion, count_tokens(thought)),
        refusal,
        empty < settings.rate_empty,
        no_usage >= settings.rate_no_usage,
    )


def reply_body(reply: Reply, model: str, number: int, *, chat: bool) -> dict[str, Any]:
    """Return the body of a reply, as OpenAI's API has it."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": reply.finish_reason, "logprobs": None}
    if chat:
        content = None if reply.refusal is not None else reply.text
        choice["message"] = {"role": "assistant", "content": content, "refusal": reply.refusal}
    else:
        choice["text"] = reply.text or reply.refusal or ""
    body: dict[str, Any] = {
        "id": f"standin-{number}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [] if reply.empty else [choice],
    }
    if reply.usage:
        body["usage"] = {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.tokens,
        }
        if reply.reasoning_tokens:
            body["usage"]["completion_tokens_details"] = {"reasoning_tokens": reply.reasoning_tokens}
    return body


def longest_answer(body: dict[str, Any]) -> int | None:
    """Return the limit on the answer's tokens that a request sets, or None."""
    longest = body.get("max_completion_tokens") or body.get("max_tokens")
    return None if longest is None else int(longest)


def count_tokens(text: str) -> int:
    """Return a token count: four characters each."""
    return -(-len(text) // _CHARACTERS)


def _text(settings: StandIn, key: str, prompt: str, body: dict[str, Any], tokens: int | None) -> str:
    found = _NEXT_TASK.search(prompt)
    first_number = int(found[1]) if found else 1
    schema = _schema(body)
    evolving = (found is not None and first_number == 1) or (schema is not None and _list_of(schema) is None)
    faults = Faults() if settings.bad_tasks else FAULTLESS
    if evolving and settings.bad_tasks:
        faults = replace(faults, leak=_EVOLVED_LEAKS)
    tasks = draw_tasks(f"{settings.seed}:{key}", settings.seed, 1 if evolving else settings.tasks, faults)

    def written(tasks: Sequence[Task]) -> str:
        if schema is None:
            return numbered(tasks, first_number)
        return json.dumps(_fill(schema, tasks), ensure_ascii=False)

    text = written(tasks)
    if tokens is None:
        return text
    missing = _CHARACTERS * tokens - len(text)
    if missing > 0:  # the last task goes on and on
        more = "".join(itertools.islice(itertools.cycle(_MORE), missing))
        return written([*tasks[:-1], replace(tasks[-1], output=tasks[-1].output + more)])
    return text[: _CHARACTERS * tokens]


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema that a request asks for; any object of tasks where it only asks for JSON."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        schema: dict[str, Any] = wanted["json_schema"]["schema"]
        return schema
    if wanted.get("type") == "json_object":
        task = {"type": "object", "properties": {name: {"type": "string"} for name in ("instruction", "output")}}
        return {"type": "object", "properties": {"tasks": {"type": "array", "items": task}}}
    return None


def _list_of(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of the items where an object holds a list, else None."""
    lists = (value for value in schema.get("properties", {}).values() if value.get("type") == "array")
    return next((value["items"] for value in lists), None)


def _fill(schema: dict[str, Any], tasks: Sequence[Task]) -> Any:
    """Return a value of the schema: lists hold a task an item, text takes the task's field of its name."""
    kind = schema.get("type")
    if kind == "object":
        return {
            name: getattr(tasks[0], name, "") if value.get("type") == "string" else _fill(value, tasks)
            for name, value in schema.get("properties", {}).items()
        }
    if kind == "array":
        return [_fill(schema["items"], [task]) for task in tasks]
    return {"string": "", "integer": 0, "number": 0, "boolean": False}.get(str(kind))


def _thought(settings: StandIn) -> str:
    length = max(0, _CHARACTERS * settings.think_tokens - len("<think></think>\n"))
    return f"<think>{''.join(itertools.islice(itertools.cycle(_THOUGHT), length))}</think>\n"


def _stopped(text: str, stop: str | list[str]) -> str:
    """Return the text up to the first stop text."""
    found = [text.find(mark) for mark in ([stop] if isinstance(stop, str) else stop)]
    ends = [place for place in found if place >= 0]
    return text[: min(ends)] if ends else text
