"""A file that only grows, kept where files cannot grow: in a bucket, as numbered objects that are each written once.

An object holds whole lines and bears its number, ``0000000041``; every so many of them are put together into one that
bears the first and the last, ``0000000000-0000000255``. A number that is taken is never written over: of two writers
one fails, whatever else stops them.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from alpaca_ray.errors import AlpacaRayError, DataError, OutputError

_MERGE = 256  # objects that become one: a reader asks for thousands, and not for as many as there were answers
_NAME = re.compile(r"(\d{10})(?:-(\d{10}))?")
Part = tuple[int, int]  # first and last number


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


def create(filesystem: Any, path: str, data: bytes) -> bool:
    """Write an object that is not there yet, and return whether it was not (where the store can tell)."""
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        # What a store other than AWS answers to the same condition is not known to every client.
        if error.errno == errno.EINVAL or "precondition" in str(error).lower():
            return not filesystem.exists(path)
        raise
    return True


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
            DataError: an object is missing in the middle, or the file is there as one.
        """
        self._filesystem = filesystem
        self._folder = folder
        self._uri = uri
        with reaching(uri, "cannot be read", ""):
            found = filesystem.find(folder)
        if folder in found:
            raise DataError(
                f"{uri}: is one object, as a run in a folder has it: move it to {uri}/{_name((0, 0))} to go on from it"
            )
        self._parts = _in_order((path.rsplit("/", 1)[-1] for path in found), uri)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._parts)

    def read(self) -> Iterator[bytes]:
        """Yield the content in order. A line that is torn, by a store that is none of objects, is left out.

        Raises:
            OutputError: the bucket cannot be reached.
        """
        together: list[Part] = []
        for part in self._parts:
            together.append(part)
            if part[0] != part[1] or len(together) == _MERGE:  # large ones one at a time
                yield from self._fetch(together)
                together = []
        yield from self._fetch(together)

    def append(self, data: bytes) -> None:
        """Write whole lines, and return when they are durable.

        Raises:
            OutputError: they cannot be written, or another run has written in the meantime.
        """
        self._merge()
        number = self._parts[-1][1] + 1 if self._parts else 0
        path = f"{self._folder}/{_name((number, number))}"
        with reaching(self._uri):
            # A client that lost the answer to its first attempt meets its own object at the second.
            if not create(self._filesystem, path, data) and self._filesystem.cat_file(path) != data:
                raise OutputError(f"{self._uri}: another run has written in it meanwhile: --resume goes on")
        self._parts.append((number, number))

    def _merge(self) -> None:
        """Put the last objects together where there are enough of them."""
        new = self._parts[-_MERGE:]
        if len(new) < _MERGE or any(first != last for first, last in new):
            return
        whole = (new[0][0], new[-1][1])
        path = f"{self._folder}/{_name(whole)}"
        data = b"".join(self._fetch(new))
        with reaching(self._uri):
            self._filesystem.pipe_file(path, data)
            if self._filesystem.size(path) != len(data):
                raise OSError(f"{_name(whole)} was not written whole")
            for part in new:
                self._filesystem.rm_file(f"{self._folder}/{_name(part)}")
        self._parts[-_MERGE:] = [whole]

    def _fetch(self, parts: Iterable[Part]) -> list[bytes]:
        paths = [f"{self._folder}/{_name(part)}" for part in parts]
        if not paths:
            return []
        with reaching(self._uri, "cannot be read", ""):
            # A list of one would come back as bytes alone.
            found = self._filesystem.cat(paths) if len(paths) > 1 else {paths[0]: self._filesystem.cat_file(paths[0])}
            return [found[path][: found[path].rfind(b"\n") + 1] for path in paths]


def _name(part: Part) -> str:
    first, last = part
    return f"{first:010d}" if first == last else f"{first:010d}-{last:010d}"


def _in_order(names: Iterable[str], uri: str) -> list[Part]:
    """Return the objects that make up the file.

    Of one that was put together and its pieces the pieces, while they are all there: it may not be whole.
    """
    found = {(int(match[1]), int(match[2] or match[1])) for match in map(_NAME.fullmatch, names) if match is not None}
    single = {first for first, last in found if first == last}
    larger = {first: last for first, last in sorted(found) if first != last}
    parts: list[Part] = []
    needed, end = 0, max((last for _, last in found), default=-1)
    while needed <= end:
        last = larger.get(needed)
        if last is not None and not all(number in single for number in range(needed, last + 1)):
            parts.append((needed, last))
            needed = last + 1
        elif needed in single:
            parts.append((needed, needed))
            needed += 1
        else:
            raise DataError(f"{uri}: its part {needed} is missing: put it back, or give --overwrite to start anew")
    return parts
