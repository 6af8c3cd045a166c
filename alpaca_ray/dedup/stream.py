"""Records of the files to deduplicate, in order, as they are, with the text that is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alpaca_ray.errors import DataError
from alpaca_ray.records import Record, digest, first_user_message
from alpaca_ray.rows import read_rows


@dataclass(frozen=True)
class Item:
    """One record on its way.

    Attributes:
        record: every column as it was read, with an ``id``.
        source: the file or dataset that it came from.
        entry: its place there, from 0.
        instruction: the text that novelty is judged by: ``instruction``, or a chat's first user message.
        input: its ``input`` where that is a text, else empty.
    """

    record: Record
    source: str
    entry: int
    instruction: str
    input: str


def read_items(sources: Iterable[str]) -> Iterator[Item]:
    """Yield the records of all sources.

    A record without an ``id`` gets the digest of its content and its occurrence number over all sources. A seed task
    with ``instances`` stays one record.

    Raises:
        DataError: a source is missing, empty or malformed, or a record has no instruction; names file and place.
    """
    seen: Counter[int] = Counter()
    for source in sources:
        entry = -1
        for entry, row in enumerate(read_rows(source)):
            instruction = instruction_of(row, f"{source}: record {entry}")
            extra = row.get("input")
            record = _with_id(row, seen, f"{source}: record {entry}")
            yield Item(record, source, entry, instruction, extra if isinstance(extra, str) else "")
        if entry < 0:
            raise DataError(f"{source}: holds no records")


def instruction_of(row: Any, where: str) -> str:
    """Return the text of a record that novelty is judged by.

    Raises:
        DataError: it has none.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be an object with the field 'instruction', not {type(row).__name__}")
    messages = row.get("messages")
    if messages:
        said = first_user_message(messages)
        if said is None:
            raise DataError(f"{where}: 'messages' has no message of a user with a text as 'content'")
        return said
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise DataError(f"{where}: has no 'instruction' (a text that is not empty)")
    return str(row["instruction"])


def _with_id(row: Record, seen: Counter[int], where: str) -> Record:
    if row.get("id") is not None or "instances" in row:
        return row
    content = digest(row, where)
    number = int(content, 16)  # a number is kept in half the memory of its text
    record = {**row, "id": f"{content}-{seen[number]}"}
    seen[number] += 1
    return record
