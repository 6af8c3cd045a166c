"""A file that only grows, kept where files cannot grow: in a bucket, as numbered objects that are each written once.

An object holds whole lines and bears its number, ``0000000041``; every so many of them are put together into one that
bears the first and the last, ``0000000000-0000000255``. A number that is taken is never written over: of two writers
one fails, whatever else stops them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alpaca_ray.errors import AlpacaRayError, DataError, OutputError

_MERGE = 256  # objects that become one: a reader asks for thousands, and not for as many as there were answers
_NAME = re.compile(r"(\d{10})(?:-(\d{10}))?")


@contextmanager
def reaching(uri: str, trouble: str = "cannot be written", advice: str = "; go on with --resume") -> Iterator[None]:
    """Turn what a bucket's client raises, which is of dozens of types, into one line.

    Raises:
        OutputError: instead.
    """
    try:
        yield
    except AlpacaRayError:
        raise
    except Exception as error:  # each client has types of its own; raised again with the cause
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutputError(f"{uri}: {trouble}: {words}{advice}") from error


class Segments:
    """The objects of one such file. One process writes them."""

    def __init__(self, filesystem: Any, folder: str, uri: str) -> None:
        """Look at what is there.

        Args:
            filesystem: fsspec's.
            folder: where the objects lie, as ``filesystem`` names it.
            uri: the same for people.

        Raises:
            OutputError: the bucket cannot be reached.
            DataError: an object is missing in the middle.
        """
        self._filesystem = filesystem
        self._folder = folder
        self._uri = uri
        with reaching(uri, "cannot be read", ""):
            found = filesystem.find(folder)
        self._parts = _in_order((path.rsplit("/", 1)[-1] for path in found), uri)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._parts)

    def read(self) -> Iterator[bytes]:
        """Yield the content in order. A line that is torn, by a store that is none of objects, is left out.

        Raises:
            OutputError: the bucket cannot be reached.
        """
        for start in range(0, len(self._parts), _MERGE):
            names = [_name(*part) for part in self._parts[start : start + _MERGE]]
            for data in self._fetch(names):
                yield data[: data.rfind(b"\n") + 1]

    def append(self, data: bytes) -> None:
        """Write whole lines, and return when they are durable.

        Raises:
            OutputError: they cannot be written, or another run has written in the meantime.
        """
        self._merge()
        number = self._parts[-1][1] + 1 if self._parts else 0
        path = f"{self._folder}/{_name(number, number)}"
        with reaching(self._uri):
            try:
                self._filesystem.pipe_file(path, data, mode="create")
            except FileExistsError as error:
                # A client that lost the answer to its first attempt meets its own object at the second.
                if self._filesystem.cat_file(path) != data:
                    raise OutputError(
                        f"{self._uri}: another run has written in it meanwhile: --resume goes on"
                    ) from error
        self._parts.append((number, number))

    def _merge(self) -> None:
        """Put the last objects together where there are enough of them."""
        new = self._parts[-_MERGE:]
        if len(new) < _MERGE or any(first != last for first, last in new):
            return
        names = [_name(*part) for part in new]
        whole = (new[0][0], new[-1][1])
        with reaching(self._uri):
            data = b"".join(piece[: piece.rfind(b"\n") + 1] for piece in self._fetch(names))
            self._filesystem.pipe_file(f"{self._folder}/{_name(*whole)}", data)
            # Only now: a reader that finds both takes the larger one.
            self._filesystem.rm([f"{self._folder}/{name}" for name in names])
        self._parts[-_MERGE:] = [whole]

    def _fetch(self, names: list[str]) -> list[bytes]:
        paths = [f"{self._folder}/{name}" for name in names]
        with reaching(self._uri, "cannot be read", ""):
            found = self._filesystem.cat(paths)
        return [found[path] for path in paths]


def _name(first: int, last: int) -> str:
    return f"{first:010d}" if first == last else f"{first:010d}-{last:010d}"


def _in_order(names: Iterator[str], uri: str) -> list[tuple[int, int]]:
    """Return first and last numbers of the objects that make up the file, larger ones before what they replace."""
    found = [(int(match[1]), int(match[2] or match[1])) for match in map(_NAME.fullmatch, names) if match is not None]
    parts: list[tuple[int, int]] = []
    needed = 0
    for first, last in sorted(found, key=lambda part: (part[0], -part[1])):
        if first > needed:
            raise DataError(f"{uri}: its part {needed} is missing: put it back, or give --overwrite to start anew")
        if first == needed:
            parts.append((first, last))
            needed = last + 1
    return parts
