"""A run's hold on its output folder, from the first touch to the end."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.bucket import Bucket
from alpaca_ray.generate.folder import OURS, FolderState, fingerprint
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.models import CACHE_ENV, cache_folder
from alpaca_ray.storage import hold_name, hold_output, location, make_folder, used_by

REPLACED = ".replaced"
_ALL = "all"  # in it, once everything that is overwritten is there: what lies outside is a new run's then


class Claim:
    """Holds a folder from the moment the block is entered, whether it exists yet or not."""

    def __init__(self, folder: Path, state: FolderState, *, overwrite: bool, bucket: Bucket | None = None) -> None:
        """Make one that holds nothing yet.

        Args:
            state: what the run found in the folder and goes on from.
            overwrite: what is there gives way, as soon as the run has an answer.
            bucket: what the folder is a copy of; it is held already.
        """
        self.folder = folder
        self.bucket = bucket
        self._state = state
        self._overwrite = overwrite
        self._held = ExitStack()
        self._by_name = False
        self._settled = False
        self._made: list[Path] = []  # by this run, outermost first

    def __enter__(self) -> Self:
        """Hold the folder: two runs in one must not both ask the teacher.

        Raises:
            OutputError: another run is at work in it, or was since this one looked.
        """
        with ExitStack() as stack:
            if self.folder.is_dir():
                self._hold(stack)
            else:
                stack.enter_context(hold_name(self.folder, cache_folder(), CACHE_ENV))
                self._by_name = True
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go."""
        self._held.close()

    def open(self) -> None:
        """Make the folder fit for the run's files: what is to be overwritten is put aside.

        Raises:
            OutputError: it cannot be written, another run is at work in it, or was since this one looked.
        """
        if self._by_name:
            self._made = [one for one in (*reversed(self.folder.parents), self.folder) if not one.exists()]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"--output_dir {self.folder}: cannot be written: {error.strerror}") from error
            self._hold(self._held)
            self._by_name = False
        make_folder(self.folder)
        if self._overwrite:
            self._put_aside()
        # It marks a complete folder, which this is no longer.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        if self.bucket is not None:
            self.bucket.remove(MANIFEST)

    def settle(self) -> None:
        """Delete what was put aside: the run has something in its place."""
        if self._settled:
            return
        self._settled = True
        aside = self.folder / REPLACED
        (aside / _ALL).unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        if self.bucket is not None:
            self.bucket.remove(f"{REPLACED}/{_ALL}", REPLACED)

    @property
    def put_aside(self) -> str | None:
        """Where the run that is overwritten is kept, as long as nothing is in its place."""
        aside = self.folder / REPLACED
        if self._settled or not used_by(aside, OURS):
            return None
        return self.where(REPLACED)

    def undo(self) -> None:
        """Take away what a run that got no answer has put there, and put back what was there before."""
        before = () if self._overwrite else {name for name, *_ in self._state.files}
        new = [name for name in OURS if name not in before]
        for name in new:
            (self.folder / name).unlink(missing_ok=True)
        aside = self.folder / REPLACED
        (aside / _ALL).unlink(missing_ok=True)
        for path in aside.iterdir() if aside.is_dir() else ():
            path.replace(self.folder / path.name)
        if self.bucket is not None:
            self.bucket.remove(*new, f"{REPLACED}/{_ALL}")
            for name in OURS:  # also what a killed run has put aside, of which this copy holds nothing
                self.bucket.move(f"{REPLACED}/{name}", name)
        self.settle()
        self._held.close()  # the lock's file is in the folder
        for folder in reversed(self._made):
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def publish(self, *names: str) -> None:
        """Put files of the folder where it is a copy of."""
        if self.bucket is not None:
            for name in names:
                self.bucket.publish(name)

    def where(self, name: str) -> str:
        """Return where a file lies, for people."""
        return location(self.folder / name) if self.bucket is None else f"{self.bucket.uri}/{name}"

    def _put_aside(self) -> None:
        """Put aside what is there; after a run that was killed before it had an answer, what that one replaced."""
        mark = self.folder / REPLACED / _ALL
        mark.parent.mkdir(exist_ok=True)
        for path in used_by(self.folder, OURS):
            if mark.exists():
                path.unlink()
            else:
                path.replace(mark.parent / path.name)
        mark.touch()
        if self.bucket is None:
            return
        kept = self.bucket.holds(f"{REPLACED}/{_ALL}")
        for name in OURS:
            if kept:
                self.bucket.remove(name)
            else:
                self.bucket.move(name, f"{REPLACED}/{name}")
        self.bucket.publish(f"{REPLACED}/{_ALL}")

    def _hold(self, stack: ExitStack) -> None:
        stack.enter_context(hold_output(self.folder))
        if fingerprint(self.folder) != self._state.files:
            raise OutputError(
                f"--output_dir {self.folder}: another run has written in it meanwhile: give --resume to go on from "
                "there, or another folder"
            )
