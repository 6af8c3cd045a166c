"""The output folder: its files appear when all of them are complete, or not at all."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import read_manifest
from alpaca_ray.storage import check_output, hold_output, make_folder, umask, write_atomic

STAGE = "dedup"
KEPT = "kept.jsonl"
REJECTED = "rejected.jsonl"
METRICS = "metrics.json"
OURS = (KEPT, REJECTED, METRICS, MANIFEST)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Check, without touching anything, that a run may write its results here.

    Raises:
        OutputError: it holds results and ``overwrite`` is not given, it is another stage's, or it cannot be written.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("stage") != STAGE:
        raise OutputError(
            f"--output_dir {folder}: its {MANIFEST} is of another stage ({manifest.get('stage') or 'unnamed'}), and "
            "would be lost: give another folder"
        )
    if not overwrite:
        for name in OURS:
            if (folder / name).exists():
                raise OutputError(f"--output_dir {folder} already holds {name}: give --overwrite, or another folder")
    check_output(folder, OURS, resume=False, overwrite=overwrite)


class Results:
    """Kept and rejected rows on their way into a folder. Nothing of an earlier run is touched before ``publish``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        """Make and hold the folder.

        Raises:
            OutputError: it cannot be written, or another run holds it.
        """
        missing = [path for path in [self.folder, *self.folder.parents] if not path.exists()]
        make_folder(self.folder)
        self._made = missing
        with ExitStack() as stack:
            stack.callback(self._remove_what_was_made)
            stack.enter_context(hold_output(self.folder))
            self._scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".dedup."))
            stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._kept = stack.enter_context((self._scratch / KEPT).open("w", encoding="utf-8", errors="surrogatepass"))
            self._rejected = stack.enter_context(
                (self._scratch / REJECTED).open("w", encoding="utf-8", errors="surrogatepass")
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the folder go; without ``publish`` it is as it was."""
        self._stack.close()

    def keep(self, record: Mapping[str, Any], where: str) -> None:
        """Write a kept record."""
        self._write(self._kept, record, where)

    def reject(self, row: Mapping[str, Any], where: str) -> None:
        """Write a rejected row."""
        self._write(self._rejected, row, where)

    def publish(self, metrics: Mapping[str, Any]) -> None:
        """Put the results in place, ``run.json`` of an earlier run away first: it marks a folder as complete.

        Raises:
            OutputError: the disk is full or fails.
        """
        try:
            for file in (self._kept, self._rejected):
                file.flush()
                os.fsync(file.fileno())
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for name in (KEPT, REJECTED):
                os.chmod(self._scratch / name, 0o666 & ~umask())
                os.replace(self._scratch / name, self.folder / name)
            write_atomic(self.folder / METRICS, json.dumps(metrics, indent=2) + "\n")
        except OSError as error:
            raise OutputError(f"--output_dir {self.folder}: cannot be written: {error.strerror}") from error
        self._made = []

    def _write(self, file: Any, row: Mapping[str, Any], where: str) -> None:
        try:
            file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
        except TypeError as error:
            raise DataError(f"{where}: cannot be written as JSON: {error}") from error
        except OSError as error:
            raise OutputError(f"--output_dir {self.folder}: cannot be written: {error.strerror}") from error

    def _remove_what_was_made(self) -> None:
        for path in self._made:
            with suppress(OSError):  # someone else's files are in it by now
                path.rmdir()


def _plain(value: Any) -> Any:
    """Return a Parquet value that JSON does not know as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")
