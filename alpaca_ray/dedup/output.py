"""The output folder: its files appear when all of them are complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alpaca_ray.console import say
from alpaca_ray.dedup import unfinished
from alpaca_ray.dedup.folder import KEPT, METRICS, OURS, REJECTED, check_folder
from alpaca_ray.dedup.unfinished import Progress, Unfinished
from alpaca_ray.errors import DataError, OutputError, UserError
from alpaca_ray.hub_rows import StreamBrokenError
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import read_json_object
from alpaca_ray.records import json_text
from alpaca_ray.storage import hold_output, make_folder, sync_folder, write_atomic

_SECONDS_BETWEEN_NOTES = 2.0


class Results:
    """Kept and rejected rows on their way into a folder. Nothing of an earlier run is touched before ``publish``.

    Attributes:
        progress: what was decided before, where a run is resumed.
        complete: whether nothing is left to be decided.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> None:
        self.folder = folder
        self.progress = Progress()
        self.complete = False
        self._identity = identity
        self._flags = {"overwrite": overwrite, "resume": resume}
        self._scratch = folder / unfinished.FOLDER
        self._stack = ExitStack()
        self._noted = time.monotonic()
        self._saved = 0  # records that a resumed run would not decide again

    def __enter__(self) -> Self:
        """Make and hold the folder, and prepare what is to be gone on from.

        Raises:
            OutputError: it cannot be written, another run holds it, or it is not what it was when it was checked.
        """
        missing = [path for path in [self.folder, *self.folder.parents] if not path.exists()]
        make_folder(self.folder)
        with ExitStack() as stack:
            stack.callback(_remove_empty, missing)
            stack.enter_context(hold_output(self.folder))
            left = check_folder(self.folder, self._identity, **self._flags)
            stack.callback(self._clean)
            with self._disk():
                if left is None:
                    for path in [self._scratch, *self.folder.glob(f"{unfinished.FOLDER}.*")]:
                        shutil.rmtree(path, ignore_errors=True)
                    self._scratch.mkdir()
                    unfinished.write_identity(self._scratch, self._identity)
                else:
                    self.progress, self.complete = left.progress, left.complete
                    self._saved = self.progress.records
                if not self.complete:
                    if left is not None:
                        unfinished.cut_back(self._scratch, self.progress)
                    self._kept, self._rejected = (
                        stack.enter_context((self._scratch / name).open("ab")) for name in (KEPT, REJECTED)
                    )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the folder go; without ``publish`` its results are as they were.

        What was decided stays for a resumed run, but for an input that was at fault: when that is mended it is another.
        """
        if kind is not None and issubclass(kind, UserError) and not issubclass(kind, OutputError | StreamBrokenError):
            self._saved = 0
        if kind is not None and (self._saved or self.complete):
            told = Unfinished({}, Progress(self._saved), self.complete).told
            say(f"stopped: {told}; the same command with --resume goes on from there")
        try:
            self._stack.close()
        except OSError:
            if kind is None:  # else it is the full disk again, which has been told
                raise

    def kept_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that were kept before the run was stopped."""
        with (self._scratch / KEPT).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def keep(self, record: Mapping[str, Any], where: str) -> None:
        """Write a kept record."""
        self._write(self._kept, record, where)

    def reject(self, row: Mapping[str, Any], where: str) -> None:
        """Write a rejected row."""
        self._write(self._rejected, row, where)

    def note(self, records: int, kept: int, rejected: Mapping[str, int], seconds: float) -> None:
        """Make what is decided so far durable, every few seconds.

        Raises:
            OutputError: the disk is full or fails.
        """
        if time.monotonic() - self._noted < _SECONDS_BETWEEN_NOTES:
            return
        with self._disk():
            self._sync()
            sizes = {KEPT: self._kept.tell(), REJECTED: self._rejected.tell()}
            unfinished.note(self._scratch, Progress(records, kept, dict(rejected), seconds, sizes))
        self._saved = records
        self._noted = time.monotonic()

    def publish(self, metrics: Mapping[str, Any], describe: Callable[[Path], Any]) -> None:
        """Complete the results and put them in place.

        Args:
            describe: writes ``run.json`` for the files of a folder into it.

        Raises:
            DataError: an input is not there any more.
            OutputError: the disk is full or fails; a resumed run goes on from where it was.
        """
        with self._disk():
            self._sync()
            write_atomic(self._scratch / METRICS, json.dumps(metrics, indent=2) + "\n")
            describe(self._scratch)
            self.complete = True
        self.put_in_place()

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of results that are complete."""
        there = self._scratch if (self._scratch / METRICS).is_file() else self.folder
        return read_json_object(there / METRICS) or {}

    def put_in_place(self) -> None:
        """Move complete results to where they belong, ``run.json`` last: it marks a folder as complete.

        Raises:
            OutputError: they cannot be moved; a resumed run tries again.
        """
        with self._disk():
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for name in OURS:
                if (self._scratch / name).exists():  # else it was moved before the run was stopped
                    os.replace(self._scratch / name, self.folder / name)
            sync_folder(self.folder)
        self.complete = False
        self._saved = 0

    def _write(self, file: Any, row: Mapping[str, Any], where: str) -> None:
        try:
            data = json_text(row).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{where}: cannot be written as JSON: {error}") from error
        with self._disk():
            file.write(data)

    def _sync(self) -> None:
        for file in (self._kept, self._rejected):
            file.flush()
            os.fsync(file.fileno())

    def _disk(self) -> _Disk:
        return _Disk(self.folder)

    def _clean(self) -> None:
        """Remove what is of no use to a resumed run; what was published is no longer there."""
        if not (self._saved or self.complete):
            shutil.rmtree(self._scratch, ignore_errors=True)


class _Disk:
    """Turns errors of the disk into one line. A class, since it is entered once for each record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and not isinstance(error, UserError):
            raise OutputError(f"--output_dir {self._folder}: cannot be written: {error.strerror or error}") from error


def _remove_empty(folders: list[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # files are in it by now
            path.rmdir()
