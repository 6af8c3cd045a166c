"""Instruction records: what they are, and how they are read and written.

A record is ``{"instruction", "input", "output"}`` or, as chat, ``{"messages": [{"role", "content"}, ...]}``. An ``id``
and columns that we do not know are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError
from alpaca_ray.rows import locate, read_rows

Record = dict[str, Any]

SHIPPED_SEEDS = "seeds"
_CONTENT_FIELDS = ("instruction", "input", "output", "messages")


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
        need_output: refuse records that have no ``output`` (and are no chat).

    Raises:
        DataError: the source is missing, empty or malformed; the text names the file and the line or record.
    """
    rows, name = _read_rows(source)
    if not rows:
        raise DataError(f"{name}: holds no records")
    records: list[Record] = []
    for index, row in enumerate(rows):
        records += _as_records(row, f"{name}: record {index}", need_output)
    return with_ids(records)


def read_seed_tasks(source: str) -> list[Record]:
    """Read seed tasks: the originals' ``seed_tasks.jsonl`` form or plain records; of each task its first instance.

    Raises:
        DataError: as ``read_records``.
    """
    rows, name = _read_rows(source)
    if not rows:
        raise DataError(f"{name}: holds no seed tasks")
    tasks = [_as_records(row, f"{name}: record {index}", need_output=True)[0] for index, row in enumerate(rows)]
    return with_ids(tasks)


def digest(record: Record) -> str:
    """Return 16 hexadecimal digits that identify a record's content."""
    content = {field: record[field] for field in _CONTENT_FIELDS if record.get(field)}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def with_ids(records: Iterable[Record]) -> list[Record]:
    """Give each record without an ``id`` the digest of its content and its occurrence number (``…-0``, ``…-1``)."""
    seen: Counter[str] = Counter()
    result = []
    for record in records:
        if record.get("id") is None:
            content = digest(record)
            record = {**record, "id": f"{content}-{seen[content]}"}
            seen[content] += 1
        result.append(record)
    return result


def write_json(records: Sequence[Record]) -> str:
    """Return a JSON list with one field a line, as the originals wrote ``regen.json``."""
    return json.dumps(records, ensure_ascii=False, indent=4) + "\n"


def json_pieces(records: Iterable[Record]) -> Iterator[bytes]:
    """Yield the text of ``write_json`` in pieces, for more records than the memory should hold at once."""
    before = "[\n"
    for record in records:
        yield (before + "    " + _indented(record, 1)).encode("utf-8", "surrogatepass")
        before = ",\n"
    yield b"[]\n" if before == "[\n" else b"\n]\n"


def _indented(value: Any, level: int) -> str:
    """Return a JSON value as ``json.dumps(indent=4)`` writes it; that is done in Python, and this mostly in C."""
    if not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
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
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _read_rows(source: str) -> tuple[list[Any], str]:
    source = source_path(source)
    name, _ = locate(source)
    return list(read_rows(source)), name


def _as_records(row: Any, where: str, need_output: bool) -> list[Record]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with the field 'instruction', not {type(row).__name__}")
    if row.get("messages"):
        _check_messages(row["messages"], where)
        return [row]
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise DataError(f"{where}: has no 'instruction' (a text that is not empty)")
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


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list):
        raise DataError(f"{where}: 'messages' must be a list")
    for number, message in enumerate(messages):
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise DataError(f"{where}: message {number} needs 'role' and 'content', both texts")
