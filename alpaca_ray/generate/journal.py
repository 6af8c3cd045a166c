"""The journal: every answer of the teacher, one JSON object a line, durable before it counts.

Line 1 is a header with the settings that shape the answers and what is made of them; each further line is the outcome
of one request, or, after a replay, the settings that hold from then on. A line that a crash tore in two is cut off when
the journal is opened again.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.storage import sync_folder

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
        estimated: the same counts, at most, where the server named none.
        lost: tokens, at most, of attempts that it may charge for without having answered.
        seconds: from the first attempt to the outcome, waits between attempts included.
        failures: kind to number of failed attempts, those that a later attempt made good included.
    """

    request_id: int
    seed_ids: list[str]
    prompt_sha: str
    model: str
    text: str | None = None
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    estimated: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    message: str | None = None
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What the answers depend on, and how many records stood in ``regen.json`` before the first request."""

    settings: dict[str, Any]
    initial: int = 0


class Mirror(Protocol):
    """Where lines must be as well before they count (see ``Segments``)."""

    def append(self, data: bytes, /) -> None:
        """Return when whole lines are durable there."""
        ...


class Journal:
    """An append-only file of outcomes. One process writes it."""

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        """Open for appending, creating it or cutting off a torn last line.

        Args:
            mirror: gets every line, too, before it counts; what the file holds already is there.
        """
        self._path = path
        self._mirror = mirror
        if path.exists():
            repair(path)
        # Without a buffer: one would keep what could not be written, and add it to a later row.
        new = not path.exists()
        self._file = path.open("ab", buffering=0)
        if new:
            sync_folder(path.parent)
        self._end = os.fstat(self._file.fileno()).st_size  # behind the last row that counts

    def write_header(self, header: Header) -> None:
        """Write the first line."""
        self._write([{"journal": _VERSION, **asdict(header)}])

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings that take the header's place."""
        self._write([{"settings": dict(settings)}])

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
            if self._mirror is not None:
                self._mirror.append(data)
        except OutputError:  # of the mirror, with its own words
            with suppress(OSError):
                self._cut()
            raise
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


class Outcomes(Sequence[Outcome]):
    """The outcomes of a journal, in the order they came; read from the file when they are asked for.

    A long run's answers are gigabytes: only places and numbers are kept, 16 bytes an outcome.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Make an empty one; ``path`` is the journal's."""
        self._path = path
        self._starts = array("Q")
        self._ids = array("Q")
        self._places: dict[int, int] = {}

    @property
    def ids(self) -> frozenset[int]:
        """The numbers of the requests."""
        return frozenset(self._places)

    def add(self, request_id: int, start: int) -> None:
        """Note where an outcome begins. An actor that died before it heard of it may repeat one: the first counts."""
        if request_id not in self._places:
            self._places[request_id] = len(self._ids)
            self._ids.append(request_id)
            self._starts.append(start)

    def in_order(self) -> Iterator[Outcome]:
        """Yield them in the order of their numbers."""
        return self._read(self._places[number] for number in sorted(self._places))

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Outcome]: ...
    def __getitem__(self, index: int | slice) -> Outcome | Sequence[Outcome]:
        if isinstance(index, slice):
            return list(self._read(range(*index.indices(len(self)))))
        return next(self._read([range(len(self))[index]]))

    def __iter__(self) -> Iterator[Outcome]:
        return self._read(range(len(self)))

    def _read(self, places: Iterable[int]) -> Iterator[Outcome]:
        if self._path is None:
            return
        with self._path.open("rb") as file:
            for place in places:
                file.seek(self._starts[place])
                yield Outcome(**_parse(file.readline(), self._path, 0))


@dataclass(frozen=True)
class Contents:
    """What a journal holds. ``header``: with the settings that hold now; None where there is no complete first line."""

    header: Header | None = None
    outcomes: Outcomes = field(default_factory=Outcomes)


def read_journal(path: Path) -> Contents:
    """Return a journal's header and outcomes; a torn last line is left out, the file as it is.

    Raises:
        DataError: the first line is no header of ours, or another line is damaged.
    """
    if not path.is_file():
        return Contents()
    header: Header | None = None
    outcomes = Outcomes(path)
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            row = _parse(line, path, number)
            if header is None:
                if row.get("journal") != _VERSION or not isinstance(row.get("settings"), dict):
                    raise DataError(f"{path}, line 1: not the header of a journal of this version ({_VERSION})")
                header = Header(row["settings"], int(row.get("initial", 0)))
            elif isinstance(row.get("settings"), dict):
                header = Header(row["settings"], header.initial)
            else:
                try:
                    outcomes.add(Outcome(**row).request_id, start)
                except (TypeError, OverflowError) as error:
                    raise DataError(f"{path}, line {number}: not the outcome of a request: {error}") from error
            start += len(line)
    return Contents(header, outcomes)


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: must hold a JSON object")
    return row
