"""A checkpoint folder written beside the work: whole or not at all, and durable before it gets its name. Pure."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray.errors import AlpacaRayError, OutputError
from alpaca_ray.storage import sync_file, sync_folder, umask
from alpaca_ray.train import whole

STAGING = ".checkpoint."
_NAME = re.compile(r"checkpoint-(\d+)")


class Background:
    """One piece of work at a time in a thread of its own; its error comes out where it is waited for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: AlpacaRayError | None = None

    def start(self, work: Callable[[], None], what: str) -> None:
        """Begin a piece of work. The one before must have been taken note of.

        Args:
            what: names the work in the error that ``error`` returns where it raises one that is not ours.
        """

        def run() -> None:
            try:
                work()
            except AlpacaRayError as error:
                self._error = error
            # A full disk, which each library reports by a class of its own; torch's is not even an Exception.
            except BaseException as error:  # noqa: BLE001
                lines = str(error).splitlines()
                self._error = OutputError(f"{what}: cannot be written: {lines[0] if lines else type(error).__name__}")
                self._error.__cause__ = error

        self._error = None
        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a piece of work is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def error(self) -> AlpacaRayError | None:
        """What the last piece of work failed with, once it is no longer busy."""
        return self._error

    def wait(self) -> None:
        """Wait for the piece of work that is under way, if any."""
        if self._thread is not None:
            self._thread.join()


@contextmanager
def staged(folder: Path, name: str, *, still_ours: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """Yield a hidden folder in ``folder`` that becomes ``folder/name`` in one step when the block ends well.

    Everything in it is on the disk before it gets its name, so that a crash at any moment leaves either no folder of
    that name or a whole one.

    Args:
        still_ours: asked before the last step; where another run has taken the folder over, nothing is left in it.

    Raises:
        OutputError: another run has taken the folder over.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=f"{STAGING}{name}."))
    try:
        yield staging
        whole.write_list(staging)
        for path in sorted(staging.rglob("*")):
            os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask())  # safetensors writes private files
            if path.is_dir():
                sync_folder(path)
            else:
                sync_file(path)
        os.chmod(staging, 0o777 & ~umask())
        sync_folder(staging)
        if not still_ours():
            raise OutputError(f"{folder}: another run has taken this folder over: {name} was not written")
        if (folder / name).exists():  # of an attempt that did not get as far as to go on from it
            os.replace(folder / name, staging.with_name(f"{staging.name}.old"))
        os.replace(staging, folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(staging.with_name(f"{staging.name}.old"), ignore_errors=True)


def rotate(folder: Path, limit: int | None, *, best: str | None = None, written: str | None = None) -> None:
    """Delete the oldest checkpoints but ``limit``; the newest and the one at the path ``best`` always stay.

    Args:
        written: the name of the one that was written just now, if any. Those of later steps were passed over as broken
            when the run went on from an earlier one: they go first, and the newest is this one.
    """
    if not limit:
        return
    named = ((_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir() if entry.is_dir())
    found = sorted((int(match[1]), entry) for match, entry in named if match)
    if not found:
        return
    if written:
        step = int(written.rpartition("-")[2])
        found.sort(key=lambda numbered: (numbered[0] <= step, numbered[0]))
    kept = {found[-1][1].name} | ({Path(best).name} if best else set())
    others = [entry for _, entry in found if entry.name not in kept]
    for entry in others[: max(0, len(found) - max(limit, len(kept)))]:
        # Out of sight first: half a folder must not be taken for a checkpoint.
        hidden = folder / f"{STAGING}{entry.name}.old"
        os.replace(entry, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed run left of checkpoints that it was writing or deleting."""
    for entry in folder.glob(f"{STAGING}*"):
        shutil.rmtree(entry, ignore_errors=True)
