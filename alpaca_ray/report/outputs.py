"""The files of a report in a folder that holds other files too: which are ours, and may be replaced or deleted.

``report_files.json`` names each file that a report wrote, with its digest. A file that it does not name, or that has
been changed since, is somebody's own: it is never replaced and never deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.manifest import file_digest, read_json_object
from alpaca_ray.storage import write_atomic

LEDGER = "report_files.json"
_LOCK = ".report.lock"
_MARK = "alpaca_ray, jobs/report.py"

# Returns a file's content in pieces, each time anew.
Content = Callable[[], Iterable[bytes]]


class Outputs:
    """The files of reports in ``folder``."""

    def __init__(self, folder: Path) -> None:
        """Read what earlier reports left here.

        Raises:
            OutputError: there is a file of the ledger's name that is not one.
        """
        self.folder = folder
        self._known = _read_ledger(folder / LEDGER)

    def is_ours(self, name: str) -> bool:
        """Whether a file is as a report wrote it."""
        path = self.folder / name
        try:
            return name in self._known and path.is_file() and file_digest(path) in self._known[name]
        except OSError:
            return False  # what we may not read we did not leave so

    def check(self, names: Iterable[str], source: Path | None) -> None:
        """Check that files may be written.

        Args:
            names: relative to the folder.
            source: the file that the report is made from.

        Raises:
            OutputError: one is the source, or somebody's own.
        """
        for name in names:
            path = self.folder / name
            parent = path.parent
            if parent.exists() and not parent.is_dir():
                raise OutputError(f"--output_dir {self.folder}: {parent.name} in it is no folder: move it away")
            if source is not None and path.exists() and path.samefile(source):
                raise OutputError(
                    f"--output_dir {self.folder}: its {name} is what this report reads, and would be replaced: give "
                    "another folder"
                )
            if (path.exists() or path.is_symlink()) and not self.is_ours(name):
                raise OutputError(
                    f"--output_dir {self.folder}: its {name} is not as a report wrote it, and would be lost: move it "
                    "away, or give another folder"
                )

    def publish(self, contents: Mapping[str, Content], source: Path | None) -> None:
        """Write files in their order, the last one after everything else, and delete those of earlier reports.

        Whenever it is stopped, the ledger knows what is there: it is written first, with each file's digest before
        and after.

        Raises:
            OutputError: ``check`` refuses, or another report is being written here; nothing is written then.
            OSError: the disk is full or fails.
        """
        with self._held():
            self._known = _read_ledger(self.folder / LEDGER)  # another report may have ended meanwhile
            self.check(contents, source)
            self._write_all(contents)

    def _write_all(self, contents: Mapping[str, Content]) -> None:
        old = {name: file_digest(self.folder / name) for name in self._known if self.is_ours(name)}
        new = {name: _digest(content()) for name, content in contents.items()}
        names = {
            name: sorted({found[name] for found in (old, new) if name in found}) for name in sorted(old.keys() | new)
        }
        ledger = json.dumps({"written_by": _MARK, "files": names}, indent=2) + "\n"
        write_atomic(self.folder / LEDGER, ledger)
        *before, last = contents
        for name in before:
            self._write(name, contents[name])
        for name in old.keys() - new.keys():
            (self.folder / name).unlink(missing_ok=True)
        self._write(last, contents[last])

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep a second report out. The run whose folder it is may be at work: its lock is another one."""
        path = self.folder / _LOCK
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(
                f"--output_dir {self.folder}: another report is being written there: wait for it, or give another "
                "folder"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the release: afterwards it may be another report's
            lock.release()

    def _write(self, name: str, content: Content) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, content())


def _digest(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _read_ledger(path: Path) -> dict[str, list[str]]:
    try:
        content = read_json_object(path) or {"written_by": _MARK, "files": {}}
    except DataError:
        content = {}
    files: Any = content.get("files")
    sound = isinstance(files, dict) and all(
        isinstance(digests, list) and not Path(name).is_absolute() and ".." not in Path(name).parts
        for name, digests in files.items()
    )
    if content.get("written_by") != _MARK or not sound or path.is_dir():
        raise OutputError(
            f"--output_dir {path.parent}: its {LEDGER} is no list of a report's files, and would be lost: move it "
            "away, or give another folder"
        )
    return dict(files)
