"""The journal: every answer of the teacher, one JSON object a line, durable before it counts.

Line 1 is a header with the settings that shape the answers; each further line is the outcome of one request. A line
that a crash tore in two is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError, OutputError

FILE_NAME = "journal.jsonl"
_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What came of one request: an answer, or the error that was left after all attempts.

    Attributes:
        request_id: assigned before sending, from 0.
        seed_ids: of the examples, in their order.
        prompt_sha: digest of the prompt.
        text: the answer; None where there is none, and then ``error`` names the kind and ``message`` the words.
        usage: ``prompt_tokens`` and ``completion_tokens`` as the server counted them; empty where it did not say.
        seconds: from the first attempt to the outcome, waits included.
        failures: kind to number of failed attempts, those that a later attempt made good included.
    """

    request_id: int
    seed_ids: list[str]
    prompt_sha: str
    model: str
    text: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    message: str | None = None
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What the answers depend on, and how many records stood in ``regen.json`` before the first request."""

    settings: dict[str, Any]
    initial: int = 0


class Journal:
    """An append-only file of outcomes. One process writes it."""

    def __init__(self, path: Path) -> None:
        """Open for appending, creating it or cutting off a torn last line."""
        self._path = path
        if path.exists():
            repair(path)
        # Without a buffer: one would keep what could not be written, and add it to a later row.
        self._file = path.open("ab", buffering=0)
        self._end = os.fstat(self._file.fileno()).st_size  # behind the last row that counts

    def write_header(self, header: Header) -> None:
        """Write the first line."""
        self._write([{"journal": _VERSION, **asdict(header)}])

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Write outcomes and return when they are on the disk: one synchronisation for all of them.

        Raises:
            OutputError: the disk is full or fails; nothing of this call counts.
        """
        self._write([asdict(outcome) for outcome in outcomes])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        data = text.encode("utf-8", "surrogatepass")
        try:
            self._cut()
            left = memoryview(data)
            while left:  # a disk that fills up takes a part and refuses the rest
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # the next write tries again, and so does whoever opens the file next
                self._cut()
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}; go on with --resume") from error
        self._end += len(data)

    def _cut(self) -> None:
        """Cut off what a failed write has left behind."""
        if os.fstat(self._file.fileno()).st_size > self._end:
            os.ftruncate(self._file.fileno(), self._end)


def repair(path: Path) -> int:
    """Cut a torn last line off and return how many bytes went."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:  # look backwards for the last line break
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
        return size - end


def read_header(path: Path) -> Header | None:
    """Return a journal's header; None where there is no journal, or none with a complete first line.

    Raises:
        DataError: the first line is no header of ours.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None
    row = _parse(line, path, 1)
    if row.get("journal") != _VERSION or not isinstance(row.get("settings"), dict):
        raise DataError(f"{path}, line 1: not the header of a journal of this version ({_VERSION})")
    return Header(row["settings"], int(row.get("initial", 0)))


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """Yield a journal's outcomes in the order they came; a torn last line is left out, the file as it is.

    Raises:
        DataError: another line is damaged.
    """
    seen: set[int] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 or not line.endswith(b"\n"):
                continue
            row = _parse(line, path, number)
            try:
                outcome = Outcome(**row)
            except TypeError as error:
                raise DataError(f"{path}, line {number}: not the outcome of a request: {error}") from error
            if outcome.request_id not in seen:  # an actor that died between writing and hearing of it may repeat one
                seen.add(outcome.request_id)
                yield outcome


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: must hold a JSON object")
    return row
