"""Which output folder a run may use: an empty one, its own, or one of finished results that may be replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.dedup import unfinished
from alpaca_ray.dedup.unfinished import Unfinished
from alpaca_ray.errors import OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import read_manifest
from alpaca_ray.storage import check_output

STAGE = "dedup"
KEPT = "kept.jsonl"
REJECTED = "rejected.jsonl"
METRICS = "metrics.json"
OURS = (KEPT, REJECTED, METRICS, MANIFEST)
_OF_GENERATION = ("journal.jsonl", "sent.jsonl", "regen.json")  # a run that is not finished has no run.json yet


def check_folder(
    folder: Path, identity: Mapping[str, Any], *, overwrite: bool, resume: bool = False
) -> Unfinished | None:
    """Check, without touching anything, that a run may write its results here, and return what it goes on from.

    Args:
        identity: what the run's decisions depend on.

    Raises:
        OutputError: it holds results or an unfinished run and no flag says what to do with them, what is to be resumed
            is another run, the folder is another stage's, or it cannot be written.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("stage") != STAGE:
        raise OutputError(
            f"--output_dir {folder}: its {MANIFEST} is of another stage ({manifest.get('stage') or 'unnamed'}), and "
            "would be lost: give another folder"
        )
    for name in _OF_GENERATION:
        if (folder / name).exists():
            raise OutputError(
                f"--output_dir {folder}: its {name} is of a generation run, whose files would be lost: give another "
                "folder"
            )
    check_output(folder, (), resume=resume, overwrite=overwrite)
    if overwrite:
        return None
    left = unfinished.look(folder / unfinished.FOLDER)
    if left is not None:
        if not resume:
            raise OutputError(
                f"--output_dir {folder} holds an unfinished run ({left.told}): give --resume to go on, --overwrite to "
                "start anew, or another folder"
            )
        unfinished.check_same(left.identity, identity, folder)
        return left
    for name in OURS:
        if (folder / name).exists():
            how = "a finished run cannot be resumed: " if resume else ""
            raise OutputError(f"--output_dir {folder} already holds {name}: {how}give --overwrite, or another folder")
    return None
