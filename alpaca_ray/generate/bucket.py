"""An output folder in a bucket: a run works on a copy of it, and what has to last is in the bucket before it counts.

The journal and ``sent.jsonl`` are there as segments, written before an answer counts and before a request leaves; the
other files are replaced whole. Nothing on this machine is needed to go on.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alpaca_ray.errors import AlpacaRayError, OutputError
from alpaca_ray.generate import journal, sent
from alpaca_ray.generate.lease import FILE_NAME as LEASE
from alpaca_ray.generate.lease import Lease
from alpaca_ray.generate.segments import Segments, reaching
from alpaca_ray.models import CACHE_ENV, cache_folder

GROWING = (journal.FILE_NAME, sent.FILE_NAME)
_COPIES = "outputs"
_PATTERNS = frozenset("*?[]{}")  # what fsspec would expand to other runs' objects
_STORAGE_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "GCS_", "FSSPEC_", "S3_")


class Bucket:
    """The folder in the bucket, and the copy of it."""

    def __init__(self, uri: str, folder: Path, whole: tuple[str, ...]) -> None:
        """``folder``: the copy; ``whole``: names of the files that are replaced whole."""
        self.uri = uri.rstrip("/")
        self.folder = folder
        self._whole = whole

    def __reduce__(self) -> tuple[Any, ...]:
        # The process that writes the journal was started by the cluster, and has the cluster's environment.
        environ = {name: value for name, value in os.environ.items() if name.startswith(_STORAGE_VARIABLES)}
        return _elsewhere, (self.uri, self.folder, self._whole, environ)

    def fetch(self) -> None:
        """Copy what is there.

        Raises:
            OutputError: the bucket cannot be reached, or the copy has no room.
            DataError: a part of the journal is missing.
        """
        filesystem, root = self._reach()
        try:
            for name in GROWING:
                segments = self.segments(name)
                if segments:
                    with (self.folder / name).open("wb") as file:
                        file.writelines(segments.read())
            with reaching(f"--output_dir {self.uri}", "cannot be read", ""):
                for name in self._whole:
                    if filesystem.exists(f"{root}/{name}"):
                        filesystem.get_file(f"{root}/{name}", str(self.folder / name))
        except (OutputError, OSError) as error:
            cause = error.__cause__ if isinstance(error, OutputError) else error
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise OutputError(
                    f"{self.folder.parent}: no room for a copy of {self.uri} ({cause.strerror}): {CACHE_ENV} names "
                    "another place"
                ) from error
            raise

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
        """Remove files, and folders with all that is in them; what is not there is none to remove."""
        filesystem, root = self._reach()
        with reaching(self.uri):
            for name in names:
                for path in filesystem.find(f"{root}/{name}"):
                    filesystem.rm_file(path)

    def move(self, name: str, to: str) -> None:
        """Move a file, or a folder with all that is in it."""
        filesystem, root = self._reach()
        with reaching(self.uri):
            for path in filesystem.find(f"{root}/{name}"):
                filesystem.cp_file(path, f"{root}/{to}{path.removeprefix(f'{root}/{name}')}")
        self.remove(name)

    def holds(self, name: str) -> bool:
        """Whether there is such a file, or something in such a folder."""
        filesystem, root = self._reach()
        with reaching(self.uri, "cannot be read", ""):
            return bool(filesystem.find(f"{root}/{name}"))

    def lease(self) -> Lease:
        """Return the mark that says who is at work here."""
        filesystem, root = self._reach()
        return Lease(filesystem, f"{root}/{LEASE}", self.uri)

    def _reach(self) -> tuple[Any, str]:
        import fsspec

        with reaching(f"--output_dir {self.uri}", "cannot be used", ""):
            filesystem, root = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)
        return filesystem, root.rstrip("/")


def _elsewhere(uri: str, folder: Path, whole: tuple[str, ...], environ: Mapping[str, str]) -> Bucket:
    os.environ.update(environ)
    return Bucket(uri, folder, whole)


def mirror_of(bucket: Bucket | None, name: str) -> Segments | None:
    """Return the segments of a file that grows; None where the folder is no copy of a bucket."""
    return None if bucket is None else bucket.segments(name)


@contextmanager
def copy_of(uri: str, whole: tuple[str, ...]) -> Iterator[Bucket]:
    """Hold a bucket's folder, and yield it with a copy on this machine, which goes at the end.

    Errors name the bucket where they would have named the copy.

    Raises:
        OutputError: the bucket cannot be reached, or another run is at work in it.
    """
    if _PATTERNS & set(uri):
        raise OutputError(f"--output_dir {uri}: must not hold any of {' '.join(sorted(_PATTERNS))}: take another name")
    copies = cache_folder() / _COPIES
    try:
        copies.mkdir(parents=True, exist_ok=True)
        _clear(copies)
        folder = copies / uuid.uuid4().hex
        with FileLock(_lock_of(folder)):  # tells the next run that this copy is somebody's
            folder.mkdir()
            try:
                yield from _held(Bucket(uri, folder, whole))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)
    except OSError as error:
        at = Path(str(error.filename))
        if error.filename is None or not (at.is_relative_to(copies) or copies.is_relative_to(at)):
            raise
        raise OutputError(f"{copies}: cannot be written: {error.strerror}; {CACHE_ENV} names another place") from error


def _held(bucket: Bucket) -> Iterator[Bucket]:
    lease = bucket.lease()
    lease.take()
    try:
        bucket.fetch()
        yield bucket
    except AlpacaRayError as error:
        error.args = tuple(
            one.replace(str(bucket.folder), bucket.uri) if isinstance(one, str) else one for one in error.args
        )
        raise
    finally:
        lease.give_back()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _clear(copies: Path) -> None:
    """Remove copies that killed runs have left."""
    for held in copies.glob("*.lock"):
        try:
            with FileLock(held, timeout=0):
                shutil.rmtree(held.with_suffix(""), ignore_errors=True)
                held.unlink(missing_ok=True)
        except Timeout:
            continue  # of a run at work
