"""A run's hold on its output folder, from the first touch to the end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.bucket import Bucket
from alpaca_ray.generate.folder import OURS, FolderState, fingerprint
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.models import cache_folder
from alpaca_ray.storage import claim_output, hold_name, hold_output, location


class Claim:
    """Holds a folder from the moment the block is entered, whether it exists yet or not."""

    def __init__(self, folder: Path, state: FolderState, *, overwrite: bool, bucket: Bucket | None = None) -> None:
        """``state``: what the run found in the folder and goes on from; ``bucket``: what it is a copy of."""
        self.folder = folder
        self.bucket = bucket
        self._state = state
        self._overwrite = overwrite
        self._held = ExitStack()
        self._by_name = False
        self._made: list[Path] = []  # by this run, outermost first

    def __enter__(self) -> Self:
        """Hold the folder: two runs in one must not both ask the teacher.

        Raises:
            OutputError: another run is at work in it, or was since this one looked.
        """
        with ExitStack() as stack:
            if self.bucket is not None:
                self.bucket.hold()
                stack.callback(self.bucket.release)
                if self.bucket.changed:
                    raise self._changed()
            elif self.folder.is_dir():
                self._hold(stack)
            else:
                stack.enter_context(hold_name(self.folder, cache_folder()))
                self._by_name = True
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go."""
        self._held.close()

    def open(self) -> None:
        """Make the folder fit for the run's files: nothing of an earlier run in it where it is to be overwritten.

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
        claim_output(self.folder, OURS, resume=not self._overwrite, overwrite=self._overwrite)
        (self.folder / MANIFEST).unlink(missing_ok=True)  # it marks a complete folder, which this is no longer
        if self.bucket is not None:
            self.bucket.remove(*(OURS if self._overwrite else [MANIFEST]))

    def undo(self) -> None:
        """Take away what a run that got no answer has put there: the folder is as if it had never been asked for."""
        before = () if self._overwrite else {name for name, *_ in self._state.files}
        new = [name for name in OURS if name not in before]
        for name in new:
            (self.folder / name).unlink(missing_ok=True)
        if self.bucket is not None:
            self.bucket.remove(*new)
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

    def _hold(self, stack: ExitStack) -> None:
        stack.enter_context(hold_output(self.folder))
        if fingerprint(self.folder) != self._state.files:
            raise self._changed()

    def _changed(self) -> OutputError:
        return OutputError(
            f"--output_dir {self.folder}: another run has written in it meanwhile: give --resume to go on from there, "
            "or another folder"
        )
