"""What a run has decided so far: it lies in a folder of its own in the output folder until the results are published.

The folder holds the files of the results as they grow, the run's identity, and how far each file was good at one time
after another. Whatever was written after the last of those times is decided again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alpaca_ray.errors import OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import read_json_object
from alpaca_ray.storage import write_atomic

FOLDER = ".dedup"
_IDENTITY = "identity.json"
_PROGRESS = "progress.jsonl"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        records: how many were decided.
        kept: how many of them were kept.
        rejected: how many were not, by reason.
        seconds: that this took.
        sizes: bytes that tell of them, by file.
    """

    records: int = 0
    kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Unfinished:
    """A run that was stopped.

    Attributes:
        identity: what its decisions depend on.
        progress: what is decided.
        complete: whether all is decided and only the files are to be put in place.
    """

    identity: Mapping[str, Any]
    progress: Progress
    complete: bool

    @property
    def told(self) -> str:
        """How far it is, in words."""
        if self.complete:
            return "all is decided, and the files are to be put in place"
        return f"{self.progress.records:,} records decided"


def look(scratch: Path) -> Unfinished | None:
    """Return what a run left, or None where it left nothing that saves work.

    Raises:
        DataError: the files are not ours, or broken.
    """
    identity = read_json_object(scratch / _IDENTITY)
    if identity is None:
        return None
    progress = _last(scratch)
    complete = (scratch / MANIFEST).is_file()
    if progress is None and not complete:
        return None
    return Unfinished(identity, progress or Progress(), complete)


def check_same(there: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Check that a run that is resumed would decide as before.

    Raises:
        OutputError: it would not; names what differs.
    """
    plain = json.loads(json.dumps(dict(now)))
    names = sorted(name for name in {*there, *plain} if there.get(name) != plain.get(name))
    if names:
        shown = ", ".join(f"{_label(name)}{_values(there.get(name), plain.get(name))}" for name in names)
        raise OutputError(
            f"--resume: the unfinished run in {folder} was given other values or files: {shown}; use the same, or "
            "--overwrite to start anew, or another folder"
        )


def write_identity(scratch: Path, identity: Mapping[str, Any]) -> None:
    """Say what the decisions will depend on."""
    write_atomic(scratch / _IDENTITY, json.dumps(dict(identity), indent=2) + "\n")


def note(scratch: Path, progress: Progress) -> None:
    """Say how far the files are good, which must be on the disk by now."""
    with (scratch / _PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(progress)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_back(scratch: Path, progress: Progress) -> None:
    """Remove what was written after a progress was noted, a torn line of the notes included."""
    for name, size in progress.sizes.items():
        os.truncate(scratch / name, size)
    write_atomic(scratch / _PROGRESS, json.dumps(asdict(progress)) + "\n")


def _last(scratch: Path) -> Progress | None:
    """Return the last progress that was noted whole and that the files bear out."""
    path = scratch / _PROGRESS
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for line in reversed(lines):
        with suppress(ValueError, TypeError):  # torn by the end of the run, or of the machine
            progress = Progress(**json.loads(line))
            files = {name: scratch / name for name in progress.sizes}
            if all(file.is_file() and file.stat().st_size >= progress.sizes[name] for name, file in files.items()):
                return progress
    return None


def _label(name: str) -> str:
    return "alpaca_ray itself" if name == "version" else f"--{name}"


def _values(there: Any, now: Any) -> str:
    if any(isinstance(value, list) or (isinstance(value, str) and len(value) > 20) for value in (there, now)):
        return ""  # digests tell nobody anything
    return f" (there {there}, now {now})"
