"""``data/train.jsonl``: the records as the hub's viewer can read them, one schema for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from alpaca_ray.records import Record
from alpaca_ray.report.measure import clean

# Which fields a row has besides its id: the three of a plain record, messages, or all four.
Schema = Literal["plain", "chat", "mixed"]

_PARTS = ("instruction", "input", "output")


def schema_of(records: Sequence[Record]) -> Schema:
    """Return the schema that loses nothing of any record: ``mixed`` where some hold what others do not."""
    chats = sum(bool(record.get("messages")) for record in records)
    if not chats:
        return "plain"
    only_messages = not any(record.get(part) for record in records for part in _PARTS)
    return "chat" if chats == len(records) and only_messages else "mixed"


def data_rows(records: Sequence[Record], schema: Schema) -> Iterator[bytes]:
    """Yield the records as JSON lines: nothing but their content and id, every field in every row.

    A field that is null, or a list that is empty, in the first rows has no type that a reader could infer: in a
    ``mixed`` schema a plain record therefore has messages too, and a chat has empty texts.
    """
    for record in records:
        row: dict[str, Any] = {"id": str(record["id"])}
        if schema != "plain":
            row["messages"] = _turns(record)
        if schema != "chat":
            row |= {part: clean(record.get(part)) for part in _PARTS}
        yield (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _turns(record: Record) -> list[dict[str, str]]:
    if record.get("messages"):
        return [{"role": turn["role"], "content": turn["content"]} for turn in record["messages"]]
    asked = "\n\n".join(text for text in (clean(record.get("instruction")), clean(record.get("input"))) if text)
    turns = [{"role": "user", "content": asked}]
    if output := clean(record.get("output")):
        turns.append({"role": "assistant", "content": output})
    return turns
