"""Tasks as JSON: the schema that an endpoint enforces, examples in that form, and reading what comes back.

An answer that the length limit cut is no JSON any more; every task that is whole is taken from it all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_ray.generate.entry import Entry, task_entry

_FIELDS = ("instruction", "input", "output")
_TASK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "instruction": {"type": "string", "description": "What is to be done."},
        "input": {"type": "string", "description": "The material to do it with; empty where there is none."},
        "output": {"type": "string", "description": "The solution."},
    },
    "required": list(_FIELDS),
    "additionalProperties": False,
}
_LIST = "tasks"
_DECODER = json.JSONDecoder(strict=False)  # small models write line breaks within texts: no reason to lose a task
_STARTS_JSON = re.compile(r"[{\[]\s*[\"{\[\]}]")
_STARTS_LIST = re.compile(r'(?:\{\s*"[^"]*"\s*:\s*)?\[')
_STARTS_TASK = re.compile(r'\{\s*"instruction"')


@dataclass(frozen=True)
class _Broken:
    """Text from where a value begins that cannot be read."""

    text: str


def response_format(*, single: bool) -> dict[str, Any]:
    """Return the request's ``response_format``: a list of tasks, or a single one.

    It keeps to what OpenAI's strict mode takes: every property is required, and no other is allowed.
    """
    schema = _TASK
    if not single:
        tasks = {"type": "array", "items": _TASK}
        schema = {"type": "object", "properties": {_LIST: tasks}, "required": [_LIST], "additionalProperties": False}
    return {
        "type": "json_schema",
        "json_schema": {"name": "task" if single else "new_tasks", "strict": True, "schema": schema},
    }


def encode_json(header: str, tasks: Sequence[Mapping[str, Any]], new: int) -> str:
    """Return the header, the tasks as an answer would hold them, and the wish for ``new`` others."""
    shown = [{name: str(task.get(name) or "").strip() for name in _FIELDS} for task in tasks]
    examples = json.dumps({_LIST: shown}, ensure_ascii=False, indent=1)
    wish = f"{new} new tasks" if new > 1 else "1 new task"
    return f"{header}\n{examples}\n\nNow write {wish}, none like these, as one JSON object of the same form.\n"


def parse_json(text: str, *, finish_reason: str | None) -> list[Entry]:
    """Take an answer in JSON apart.

    Understood are an object with a list of tasks under any name, a list of tasks, and a single task, with or without
    text or a code fence around it.

    Args:
        finish_reason: the API's; with ``length`` an unfinished task is reported as ``truncated``.
    """
    entries = [
        Entry(item.text, problem="unparsable") if isinstance(item, _Broken) else _entry(item) for item in _items(text)
    ]
    entries = entries or [Entry(text.strip(), problem="unparsable")]
    if finish_reason == "length" and entries[-1].problem is not None:
        entries[-1] = Entry(entries[-1].text, problem="truncated")
    return entries


def _items(text: str) -> Iterator[Any]:
    """Yield the values that may be tasks, and what is broken."""
    start = _STARTS_JSON.search(text)
    if start is None:
        return
    try:
        whole, _ = _DECODER.raw_decode(text, start.start())
    except ValueError:
        yield from _salvaged(text, start.start())
        return
    if isinstance(whole, dict) and "instruction" not in whole:
        lists = [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if lists else next((value for value in whole.values() if isinstance(value, dict)), whole)
    yield from whole if isinstance(whole, list) else [whole]


def _salvaged(text: str, start: int) -> Iterator[Any]:
    """Yield the whole objects of a list whose end is missing, or that is broken somewhere."""
    opening = _STARTS_LIST.match(text, start)
    place = text.find("{", opening.end()) if opening else -1
    if place < 0:
        yield _Broken(text[start:].strip())
    while place >= 0:
        try:
            item, end = _DECODER.raw_decode(text, place)
            yield item
            place = text.find("{", end)
        except ValueError:
            following = _STARTS_TASK.search(text, place + 1)
            yield _Broken(text[place : following.start() if following else None].strip())
            place = following.start() if following else -1


def _entry(item: Any) -> Entry:
    text = json.dumps(item, ensure_ascii=False)
    if not isinstance(item, dict) or "instruction" not in item or "output" not in item:
        return Entry(text, problem="unparsable")
    values = [item.get(name) for name in _FIELDS]
    if any(isinstance(value, (list, dict)) for value in values):
        return Entry(text, problem="unparsable")
    return task_entry(text, *("" if value is None else str(value).strip() for value in values))
