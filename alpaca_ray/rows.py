"""Rows of a file of any size, one by one: JSON list, JSONL, Parquet, a stage's folder, or a hub dataset."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from alpaca_ray.errors import DataError
from alpaca_ray.hub_rows import HubRows, StreamBrokenError, is_hub_id
from alpaca_ray.manifest import data_file_of
from alpaca_ray.storage import is_uri, open_input

SUFFIXES = (".json", ".jsonl", ".parquet")
_CHUNK = 1 << 20  # bytes read at once
_PARQUET_ROWS = 1024
_NEAR_THE_END = 16  # characters: an escape or a word such as `false` that the end of a chunk cuts in two is shorter
_SPACE = re.compile(r"[ \t\n\r]*")


def locate(source: str) -> tuple[str, bool]:
    """Return the file that a source of rows means, or the dataset (see ``is_hub_id``), and whether it is the latter.

    Raises:
        DataError: there is no such file, folder or dataset id.
    """
    if is_uri(source):
        return source, False
    path = Path(source).expanduser()
    if path.is_dir():
        path = data_file_of(path)
    if path.is_file():
        return str(path), False
    if not path.exists() and is_hub_id(source) and not source.endswith(SUFFIXES) and source[0] != ".":
        return source, True
    raise DataError(f"{source}: no such file or folder")


def check_source(source: str) -> None:
    """Check that a source is there, also where it lies on a hub, without reading its rows.

    Raises:
        DataError: it is not.
    """
    name, on_hub = locate(source)
    if on_hub:
        HubRows(name)


def read_rows(source: str) -> Iterator[Any]:
    """Yield the rows of a source in their order, with a part of the file in memory at a time.

    Raises:
        DataError: it is missing or malformed; the text names the file, and the line where there are lines.
    """
    return (row for _, row in numbered_rows(source))


def numbered_rows(source: str) -> Iterator[tuple[int | None, Any]]:
    """Yield what ``read_rows`` does, each row with the line it stands on (from 1), None where rows are no lines.

    Raises:
        DataError: as ``read_rows``.
    """
    name, on_hub = locate(source)
    if on_hub:
        yield from _without_lines(HubRows(name))
        return
    suffix = Path(name).suffix.lower()
    with open_input(name) as handle:
        if suffix == ".parquet":
            yield from _without_lines(_parquet_rows(handle, name))
            return
        text = _Text(handle, name)
        # JSON lines under the name .json, and files without a known suffix, are told by how they begin.
        if suffix != ".jsonl" and (text.peek() == "[" or (suffix == ".json" and text.peek() != "{")):
            yield from _without_lines(_list_rows(text))
        else:
            yield from _line_rows(text, single_allowed=suffix != ".json")


def _without_lines(rows: Iterable[Any]) -> Iterator[tuple[None, Any]]:
    return ((None, row) for row in rows)


class _Text:
    """Decoded text of which a window is in memory."""

    def __init__(self, handle: IO[Any], name: str) -> None:
        self.name = name
        self.window = ""
        self.place = 0  # in the window
        self.line = 1  # of the file, where the window begins
        self.ended = False
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def more(self) -> bool:
        """Drop what lies behind, read on, and return whether there was anything."""
        if self.ended:
            return False
        self.line += self.window.count("\n", 0, self.place)
        # At least as much again as is left: a long record is then parsed a few times, not once for each chunk.
        left = self.window[self.place :]
        self.place = 0
        try:
            data = self._handle.read(max(_CHUNK, len(left)))
        except OSError as error:
            raise StreamBrokenError(f"{self.name}: cannot be read on: {error.strerror or error}") from error
        self.ended = not data
        try:
            self.window = left + self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + left.count("\n") + data[: error.start].count(b"\n")
            raise DataError(f"{self.name}, line {line}: not UTF-8 text ({error.reason})") from error
        return not self.ended

    def peek(self) -> str:
        """Return the next character that is no white space, without taking it; '' at the end."""
        while True:
            match = _SPACE.match(self.window, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self.window):
                return self.window[self.place]
            if not self.more() and self.place >= len(self.window):
                return ""

    def error(self, message: str, place: int | None = None) -> DataError:
        """Return the error that names file and line of a place in the window where JSON is not valid."""
        line = self.line + self.window.count("\n", 0, self.place if place is None else place)
        return DataError(f"{self.name}, line {line}: not valid JSON: {message}")

    def limit(self, error: Exception) -> DataError:
        """Return the error that names file and line of valid JSON that goes beyond what Python reads."""
        line = self.line + self.window.count("\n", 0, self.place)
        what = (
            "lists and objects that are nested too deeply"
            if isinstance(error, RecursionError)
            else f"a number of more than {sys.get_int_max_str_digits()} digits"
        )
        return DataError(f"{self.name}, line {line}: cannot be read: {what}")


def _list_rows(text: _Text) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    if text.peek() != "[":
        if text.peek():
            _decode(text, decoder)  # says what is wrong with it, where that is not that it is no list
        raise (
            DataError(f"{text.name}: must hold a JSON list of records")
            if text.peek() or text.place
            else text.error("the file is empty")
        )
    text.place += 1
    if text.peek() == "]":
        text.place += 1
    else:
        while True:
            text.peek()
            yield _decode(text, decoder)
            separator = text.peek()
            if separator not in (",", "]") or not separator:
                raise text.error("Expecting ',' delimiter")
            text.place += 1
            if separator == "]":
                break
    if text.peek():
        raise text.error("Extra data")


def _decode(text: _Text, decoder: json.JSONDecoder) -> Any:
    while True:
        try:
            row, end = decoder.raw_decode(text.window, text.place)
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.window) - _NEAR_THE_END
            if cut and not text.ended:
                text.more()  # the window moves, so its places count no longer: parse again even at the end
                continue
            raise text.error(error.msg, error.pos) from error
        except (RecursionError, ValueError) as error:
            raise text.limit(error) from error
        if end == len(text.window) and not isinstance(row, dict | list) and text.more():
            continue  # a number may go on in the next chunk
        text.place = end
        return row


def _line_rows(text: _Text, *, single_allowed: bool) -> Iterator[tuple[int, Any]]:
    count = 0
    number = text.line + text.window.count("\n", 0, text.place)  # blank lines may have been passed over already
    while True:
        end = text.window.find("\n", text.place)  # not splitlines(): U+2028 may stand inside a string
        if end < 0:
            if text.more():
                continue
            end = len(text.window)
        line = text.window[text.place : end]
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if not count and not single_allowed and _is_one_object(text):
                    raise DataError(f"{text.name}: must hold a JSON list of records, not one dict") from error
                raise text.error(error.msg) from error
            except (RecursionError, ValueError) as error:
                raise text.limit(error) from error
            count += 1
            yield number, row
        if end == len(text.window) and text.ended:
            break
        text.place = end + 1
        number += 1
    if count == 1 and not single_allowed:
        raise DataError(f"{text.name}: must hold a JSON list of records, not one {type(row).__name__}")


def _is_one_object(text: _Text) -> bool:
    """Whether what is there so far reads as one object over several lines."""
    try:
        _decode(text, json.JSONDecoder())
    except DataError:
        return False
    return not text.peek()


def _parquet_rows(handle: IO[Any], name: str) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    try:
        for batch in parquet.ParquetFile(handle).iter_batches(batch_size=_PARQUET_ROWS):
            yield from batch.to_pylist()
    except (OSError, ValueError, RuntimeError) as error:  # pyarrow's own errors are of these types
        raise DataError(f"{name}: cannot be read as Parquet: {error}") from error
