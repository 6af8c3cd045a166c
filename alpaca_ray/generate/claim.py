"""A run's hold on its output folder, from the first touch to the end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.folder import OURS, FolderState, fingerprint
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.storage import claim_output, hold_output


class Claim:
    """Holds a folder that exists as soon as the block is entered, and one that does not as soon as it is opened."""

    def __init__(self, folder: Path, state: FolderState, *, overwrite: bool) -> None:
        """``state``: what the run found in the folder and goes on from."""
        self.folder = folder
        self._state = state
        self._overwrite = overwrite
        self._held: ExitStack | None = None

    def __enter__(self) -> Self:
        """Hold the folder where it exists: two runs that go on in one must not both ask the teacher.

        Raises:
            OutputError: another run is at work in it, or was since this one looked.
        """
        if self.folder.is_dir():
            self._hold()
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def open(self) -> None:
        """Make the folder fit for the run's files: nothing of an earlier run in it where it is to be overwritten.

        Raises:
            OutputError: it cannot be written, another run is at work in it, or was since this one looked.
        """
        if self._held is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"--output_dir {self.folder}: cannot be written: {error.strerror}") from error
            self._hold()
        claim_output(self.folder, OURS, resume=not self._overwrite, overwrite=self._overwrite)
        (self.folder / MANIFEST).unlink(missing_ok=True)  # it marks a complete folder, which this is no longer

    def _hold(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(hold_output(self.folder))
            if fingerprint(self.folder) != self._state.files:
                raise OutputError(
                    f"--output_dir {self.folder}: another run has written in it meanwhile: give --resume to go on from "
                    "there, or another folder"
                )
            self._held = stack.pop_all()
