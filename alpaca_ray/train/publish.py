"""What a run leaves in its output folder: its checkpoints, and the model's files placed together. Pure."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.storage import sync_file, sync_folder, umask, used_by
from alpaca_ray.train import whole

SETTINGS_FILE = "train_settings.yaml"
TEMPLATE_FILE = "prompt_template.json"
RAY_FOLDER = ".ray_train"

STAGING = ".publish."

# What Ray Train keeps of its own in a run's storage; ours is what a run goes on from.
_BOOKKEEPING = ("checkpoint_manager_snapshot.json", ".validate_storage_marker")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE_FILE = whole.STATE_FILE


def checkpoints(folder: Path) -> list[Path]:
    """Return every ``checkpoint-N`` folder, whole or not, the highest N first."""
    named = ((_CHECKPOINT.fullmatch(entry.name), entry) for entry in (folder.iterdir() if folder.is_dir() else ()))
    found = {int(match[1]): entry for match, entry in named if match and entry.is_dir()}
    return [found[step] for step in sorted(found, reverse=True)]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the ``checkpoint-N`` of the highest N that is whole, or None."""
    return next((entry for entry in checkpoints(folder) if whole.fault(entry) is None), None)


def resume_point(folder: Path, warn: Callable[[str], None] = lambda line: None) -> Path | None:
    """Return the newest whole checkpoint of a run; None where it has none at all.

    Args:
        warn: told of each newer one that is passed over, and why.

    Raises:
        DataError: there are checkpoints, and not one of them is whole.
    """
    faults: list[str] = []
    for entry in checkpoints(folder):
        reason = whole.fault(entry)
        if reason is None:
            for line in faults:
                warn(f"warning: passing over {line}")
            return entry
        faults.append(f"{entry}: {reason}")
    if faults:
        raise DataError(
            f"--resume: no checkpoint in {folder} is whole ({'; '.join(faults)}): put back what is missing, give "
            "--overwrite to start anew, or another folder"
        )
    return None


def remove_bookkeeping(folder: Path) -> None:
    """Remove what Ray Train wrote for itself into a run's folder."""
    for name in _BOOKKEEPING:
        (folder / name).unlink(missing_ok=True)


def not_shared(folder: Path, token: str) -> OutputError | None:
    """Return the error that a folder is not the one into which the driver wrote the file ``token``, None if it is."""
    if (folder / token).is_file():
        return None
    return OutputError(
        f"--output_dir {folder} is not the same folder on every node ({socket.gethostname()} does not see what the job "
        "wrote there): give one on storage that the nodes share"
    )


@contextmanager
def publish_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder`` when the block ends well.

    The file ``last``, by which readers know that a model is there, is moved after all others, and that of an earlier
    model goes before any of them, so a reader never sees half a model, nor parts of two; also after a crash of the
    machine. Files of an earlier, larger model (more shards) are removed.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=STAGING))
    try:
        yield staging
        names = {entry.name for entry in staging.iterdir()}
        stale = {path.name for path in used_by(folder, ("model*.safetensors", "model.safetensors.index.json"))}
        for name in names:
            os.chmod(staging / name, 0o666 & ~umask())  # safetensors writes private files
            sync_file(staging / name)
        (folder / last).unlink(missing_ok=True)
        sync_folder(folder)
        for name in names - {last}:
            os.replace(staging / name, folder / name)
        for name in stale - names:
            (folder / name).unlink()
        sync_folder(folder)
        if last in names:
            os.replace(staging / last, folder / last)
            sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
