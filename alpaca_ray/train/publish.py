"""What a run leaves in its output folder: its checkpoints, and the model's files placed together. Pure."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray.errors import OutputError
from alpaca_ray.storage import umask, used_by

SETTINGS_FILE = "train_settings.yaml"
TEMPLATE_FILE = "prompt_template.json"
RAY_FOLDER = ".ray_train"

STAGING = ".publish."

# What Ray Train keeps of its own in a run's storage; ours is what a run goes on from.
_BOOKKEEPING = ("checkpoint_manager_snapshot.json", ".validate_storage_marker")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Written last by Trainer, so its presence marks a checkpoint that was written whole.
STATE_FILE = "trainer_state.json"


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the ``checkpoint-N`` of the highest N that was written whole, or None."""
    found = {
        int(match.group(1)): entry
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(entry.name)) and (entry / STATE_FILE).is_file()
    }
    return found[max(found)] if found else None


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

    The file ``last``, by which readers know that a model is there, is moved after all others, so a reader never sees
    half a model. Files of an earlier, larger model (more shards) are removed.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=STAGING))
    try:
        yield staging
        names = sorted((entry.name for entry in staging.iterdir()), key=lambda name: name == last)
        stale = {path.name for path in used_by(folder, ("model*.safetensors", "model.safetensors.index.json"))}
        for name in names:
            os.chmod(staging / name, 0o666 & ~umask())  # safetensors writes private files
            os.replace(staging / name, folder / name)
        for name in stale.difference(names):
            (folder / name).unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
