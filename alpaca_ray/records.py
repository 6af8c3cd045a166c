"""Instruction records: what they are, and how they are read and written.

A record is ``{"instruction", "input", "output"}`` or, as chat, ``{"messages": [{"role", "content"}, ...]}``. An ``id``
and columns that we do not know are kept.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.chat_shape import check_messages
from alpaca_ray.errors import DataError
from alpaca_ray.rows import SUFFIXES, locate, numbered_rows

Record = dict[str, Any]

SHIPPED_SEEDS = "seeds"
_FORMS = "a JSON list, JSON lines (JSONL) or Parquet"
_CONTENT_FIELDS = ("instruction", "input", "output", "messages")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which UTF-8 has no bytes for


def shipped_seed_path() -> Path:
    """Return the path of the seed tasks that this package carries."""
    return Path(__file__).parent / "data" / "seed_tasks.jsonl"


def source_path(source: str) -> str:
    """Return where a source of records lies: the path of the shipped tasks for ``seeds``, else what was given."""
    return str(shipped_seed_path()) if source == SHIPPED_SEEDS else source


def read_records(source: str, *, need_output: bool = True) -> list[Record]:
    """Read records from a file (JSON list, JSONL, Parquet), a stage's folder, ``seeds`` or a hub dataset id.

    Seed tasks in the originals' form (``instances``) become one record an instance. Each record gets an ``id``.

    Args:
        source: path, ``scheme://`` URI, hub id such as ``yahma/alpaca-cleaned``, or ``seeds`` for the shipped tasks.
        need_output: refuse records that have no ``output``, and chats in which there is nothing to learn from.

    Raises:
        DataError: the source is missing, empty or malformed; the text names the file and the line or record.
    """
    rows, name = _read_rows(source)
    if not rows:
        raise DataError(f"{name}: holds no records")
    return _identified(
        (record, where)
        for index, (line, row) in enumerate(rows)
        for where in [_place(name, index, line)]
        for record in _as_records(row, where, need_output)
    )


def read_seed_tasks(source: str) -> list[Record]:
    """Read seed tasks: the originals' ``seed_tasks.jsonl`` form or plain records; of each task its first instance.

    Raises:
        DataError: as ``read_records``.
    """
    rows, name = _read_rows(source)
    if not rows:
        raise DataError(f"{name}: holds no seed tasks")
    return _identified(
        (_as_records(row, where, need_output=True)[0], where)
        for index, (line, row) in enumerate(rows)
        for where in [_place(name, index, line)]
    )


def first_user_message(messages: Any) -> str | None:
    """Return the first text that a user says in a chat, or None where there is none."""
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and message.get("role") == "user" and isinstance(message.get("content"), str):
            return str(message["content"])
    return None


def digest(record: Record, where: str = "record") -> str:
    """Return 16 hexadecimal digits that identify a record's content.

    Raises:
        DataError: it holds what JSON has no form for; the text begins with ``where``.
    """
    content = {field: record[field] for field in _CONTENT_FIELDS if record.get(field)}
    try:
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be written as JSON: {error}") from error
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def with_ids(records: Iterable[Record]) -> list[Record]:
    """Give each record without an ``id`` the digest of its content and its occurrence number (``…-0``, ``…-1``)."""
    return _identified((record, f"record {index}") for index, record in enumerate(records))


def _identified(records: Iterable[tuple[Record, str]]) -> list[Record]:
    """Do ``with_ids`` for records that come with the place that an error names."""
    seen: Counter[str] = Counter()
    result = []
    for record, where in records:
        if record.get("id") is None:
            content = digest(record, where)
            record = {**record, "id": f"{content}-{seen[content]}"}
            seen[content] += 1
        result.append(record)
    return result


def write_json(records: Sequence[Record]) -> str:
    """Return a JSON list with one field a line, as the originals wrote ``regen.json``."""
    return json_text(records, indent=4) + "\n"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that every reader of UTF-8 can read back.

    Characters stay as they are, but for halves of surrogate pairs, which become escapes such as ``\\ud83d``. Dates and
    times (Parquet has them, JSON has not) become ISO 8601 texts.

    Raises:
        TypeError: it holds anything else that JSON has no form for.
    """
    return _escaped(json.dumps(value, ensure_ascii=False, indent=indent, default=_plain))


def _escaped(text: str) -> str:
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    """Return a Parquet value that JSON does not know as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")


def json_pieces(records: Iterable[Record]) -> Iterator[bytes]:
    """Yield the text of ``write_json`` in pieces, for more records than the memory should hold at once."""
    before = "[\n"
    for record in records:
        yield _escaped(before + "    " + _indented(record, 1)).encode()
        before = ",\n"
    yield b"[]\n" if before == "[\n" else b"\n]\n"


def _indented(value: Any, level: int) -> str:
    """Return a JSON value as ``json.dumps(indent=4)`` writes it; that is done in Python, and this mostly in C."""
    if not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    margin = "    " * level
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_indented(item, level + 1)}" for key, item in value.items()]
        opening, closing = "{}"
    else:
        parts = [_indented(item, level + 1) for item in value]
        opening, closing = "[]"
    inner = f",\n{margin}    ".join(parts)
    return f"{opening}\n{margin}    {inner}\n{margin}{closing}"


def write_jsonl(records: Iterable[Record]) -> str:
    """Return one JSON object a line."""
    return "".join(json_text(record) + "\n" for record in records)


def _read_rows(source: str) -> tuple[list[tuple[int | None, Any]], str]:
    source = source_path(source)
    name, on_hub = locate(source)
    try:
        return list(numbered_rows(source)), name
    except DataError as error:
        if on_hub or Path(name).suffix.lower() in SUFFIXES:
            raise
        raise DataError(f"{error} (records are read from {_FORMS}: convert what is none of these)") from error


def _place(name: str, index: int, line: int | None) -> str:
    """Return where a row stands: its line, counted from 1, or its place in a list, counted from 0."""
    return f"{name}: record {index}" if line is None else f"{name}, line {line}"


def _as_records(row: Any, where: str, need_output: bool) -> list[Record]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with the field 'instruction', not {type(row).__name__}")
    if row.get("messages"):
        check_messages(row["messages"], where, need_answer=need_output)
        return [row]
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise DataError(f"{where}: has no 'instruction' (a text that is not empty){_other_form(row)}")
    if "instances" in row:
        return _from_instances(row, where)
    record = {**row, "input": row.get("input") or ""}
    for field in ("input", "output"):
        if record.get(field) is not None and not isinstance(record[field], str):
            raise DataError(f"{where}: '{field}' must be a text, not {type(record[field]).__name__}")
    if need_output and record.get("output") is None:
        raise DataError(f"{where}: has no 'output'")
    return [record]


def _from_instances(row: Record, where: str) -> list[Record]:
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise DataError(f"{where}: 'instances' must be a list that is not empty")
    rest = {key: value for key, value in row.items() if key != "instances"}
    records = []
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict) or not isinstance(instance.get("output"), str):
            raise DataError(f"{where}: instance {number} has no 'output' (a text)")
        record = {**rest, "input": instance.get("input") or "", "output": instance["output"]}
        if number and record.get("id") is not None:
            record["id"] = f"{record['id']}-{number}"
        records.append(record)
    return records


def _other_form(row: Record) -> str:
    """Return what to say of a row in a form that others use, else nothing."""
    if isinstance(row.get("conversations"), list):
        return (
            ": 'conversations' (ShareGPT's form) is not read: name it 'messages', with 'role' (user, assistant) and "
            "'content' in place of 'from' (human, gpt) and 'value'"
        )
    known = [name for name in ("prompt", "question", "query", "text") if isinstance(row.get(name), str)]
    return f": name its '{known[0]}' so, and its answer 'output'" if known and "instruction" not in row else ""
