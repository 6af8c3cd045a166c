"""Rows that a run keeps on the disk instead of in memory: a million records are gigabytes.

The file has no name and goes with the process. It holds nothing that is not made again from the journal.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from alpaca_ray.errors import OutputError
from alpaca_ray.records import json_text

Row = dict[str, Any]


class RowStore(Sequence[Row]):
    """An append-only sequence of JSON objects in a temporary file; 8 bytes of memory a row."""

    def __init__(self, beside: Path) -> None:
        """Make an empty one.

        Args:
            beside: the file lies on the disk that will hold this path too, where there will be room for as much again.
        """
        folder = next(parent for parent in [beside, *beside.parents] if parent.is_dir() and os.access(parent, os.W_OK))
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the store
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error
        self._starts = array("Q", [0])

    def append(self, row: Row) -> None:
        """Add a row.

        Raises:
            OutputError: the disk is full or fails.
        """
        data = json_text(row).encode() + b"\n"
        try:
            self._file.seek(self._starts[-1])
            self._file.write(data)
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be written: {error.strerror}; go on with --resume") from error
        self._starts.append(self._starts[-1] + len(data))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = self._starts[place]
        self._file.seek(start)
        row: Row = json.loads(self._file.read(self._starts[place + 1] - start).decode())
        return row

    def __iter__(self) -> Iterator[Row]:
        for place in range(len(self)):
            yield self[place]

    def lines(self) -> Iterator[bytes]:
        """Yield the rows as they stand in a JSONL file, in large pieces."""
        end, place = self._starts[-1], 0
        while place < end:
            self._file.seek(place)
            data = self._file.read(min(1 << 20, end - place))
            place += len(data)
            yield data


class Prefix(Sequence[Row]):
    """The first rows of a sequence, without a copy of them."""

    def __init__(self, rows: Sequence[Row], length: int) -> None:
        self._rows = rows
        self._length = length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        return self._rows[range(self._length)[index]]
