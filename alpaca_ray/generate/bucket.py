"""An output folder in a bucket: a run works on a copy of it, and what has to last is in the bucket before it counts.

The journal and ``sent.jsonl`` are there as segments, written before an answer counts and before a request leaves; the
other files are replaced whole. Nothing on this machine is needed to go on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.generate import journal, sent
from alpaca_ray.generate.lease import FILE_NAME as LEASE
from alpaca_ray.generate.lease import Lease
from alpaca_ray.generate.segments import Segments, reaching
from alpaca_ray.models import cache_folder

GROWING = (journal.FILE_NAME, sent.FILE_NAME)
_COPIES = "outputs"


class Bucket:
    """The folder in the bucket, and the copy of it."""

    def __init__(self, uri: str, folder: Path, whole: tuple[str, ...]) -> None:
        """``folder``: the copy; ``whole``: names of the files that are replaced whole."""
        self.uri = uri.rstrip("/")
        self.folder = folder
        self._whole = whole
        self._seen: frozenset[tuple[str, str]] = frozenset()
        self._lease: Lease | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # to the process that writes the journal goes the address alone
        return Bucket, (self.uri, self.folder, self._whole)

    def fetch(self) -> None:
        """Copy what is there.

        Raises:
            OutputError: the bucket cannot be reached.
            DataError: a part of the journal is missing.
        """
        filesystem, root = self._reach()
        self._seen = self._look()
        for name in GROWING:
            segments = self.segments(name)
            if segments:
                with (self.folder / name).open("wb") as file:
                    file.writelines(segments.read())
        with reaching(f"--output_dir {self.uri}", "cannot be read", ""):
            for name in self._whole:
                if filesystem.exists(f"{root}/{name}"):
                    filesystem.get_file(f"{root}/{name}", str(self.folder / name))

    def segments(self, name: str) -> Segments:
        """Return the segments of a file that grows."""
        filesystem, root = self._reach()
        return Segments(filesystem, f"{root}/{name}", f"{self.uri}/{name}")

    def publish(self, name: str) -> None:
        """Replace a file by that of the copy."""
        filesystem, root = self._reach()
        with reaching(f"{self.uri}/{name}"):
            filesystem.put_file(str(self.folder / name), f"{root}/{name}")

    def remove(self, *names: str) -> None:
        """Remove files, those that grow with all their segments; what is not there is none to remove."""
        filesystem, root = self._reach()
        with reaching(self.uri):
            for name in names:
                if filesystem.exists(f"{root}/{name}"):
                    filesystem.rm(f"{root}/{name}", recursive=True)

    def hold(self) -> None:
        """Mark it as in use.

        Raises:
            OutputError: another run is at work in it.
        """
        filesystem, root = self._reach()
        self._lease = Lease(filesystem, f"{root}/{LEASE}", self.uri)
        self._lease.take()

    def release(self) -> None:
        """Take the mark away."""
        if self._lease is not None:
            self._lease.give_back()
            self._lease = None

    @property
    def changed(self) -> bool:
        """Whether another run has written in it since it was copied."""
        return self._look() != self._seen

    def _look(self) -> frozenset[tuple[str, str]]:
        """Return path and version of each object of ours."""
        filesystem, root = self._reach()
        with reaching(f"--output_dir {self.uri}", "cannot be read", ""):
            found = filesystem.find(root, detail=True)
        below = {path[len(root) + 1 :]: info for path, info in found.items()}
        return frozenset(
            (name, str(info.get("ETag") or (info.get("size"), info.get("mtime"))))
            for name, info in below.items()
            if name.split("/")[0] in (*GROWING, *self._whole)
        )

    def _reach(self) -> tuple[Any, str]:
        import fsspec

        with reaching(f"--output_dir {self.uri}", "cannot be used", ""):
            filesystem, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, root.rstrip("/")


def mirror_of(bucket: Bucket | None, name: str) -> Segments | None:
    """Return the segments of a file that grows; None where the folder is no copy of a bucket."""
    return None if bucket is None else bucket.segments(name)


@contextmanager
def copy_of(uri: str, whole: tuple[str, ...]) -> Iterator[Bucket]:
    """Yield a bucket's folder with a copy on this machine, which goes at the end.

    Errors name the bucket where they would have named the copy.

    Raises:
        OutputError: the bucket cannot be reached.
    """
    copies = cache_folder() / _COPIES
    copies.mkdir(parents=True, exist_ok=True)
    _clear(copies)
    # The number of the process tells the next run whether it may be cleared away.
    folder = Path(tempfile.mkdtemp(dir=copies, prefix=f"{os.getpid()}-"))
    bucket = Bucket(uri, folder, whole)
    try:
        bucket.fetch()
        yield bucket
    except AlpacaRayError as error:
        error.args = tuple(one.replace(str(folder), bucket.uri) if isinstance(one, str) else one for one in error.args)
        raise
    finally:
        bucket.release()
        shutil.rmtree(folder, ignore_errors=True)


def _clear(copies: Path) -> None:
    """Remove copies that killed runs have left."""
    for left in copies.iterdir():
        number = left.name.split("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
