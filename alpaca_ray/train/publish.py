"""What a run leaves in its output folder: the model's files placed together, and which files count as ours. Pure."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray.errors import OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST_FILE
from alpaca_ray.storage import claim_output, umask, used_by
from alpaca_ray.train.data import HELDOUT_FILE
from alpaca_ray.train.progress import METRICS_FILE, PLOT_FILE

SETTINGS_FILE = "train_settings.yaml"
TEMPLATE_FILE = "prompt_template.json"
RAY_FOLDER = ".ray_train"

# Only a run of ours writes these; a folder with model files but none of them is somebody's model.
_MARKS = (MANIFEST_FILE, METRICS_FILE, SETTINGS_FILE, HELDOUT_FILE)
_MODEL_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    TEMPLATE_FILE,
)
OURS = (*_MARKS, PLOT_FILE, "checkpoint-*", RAY_FOLDER, *_MODEL_FILES)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Written last by Trainer, so its presence marks a checkpoint that was written whole.
STATE_FILE = "trainer_state.json"


def claim(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Claim an output folder, never deleting a model that this program did not make.

    Raises:
        OutputError: the folder is used and cannot be taken.
    """
    used = used_by(folder, OURS)
    if overwrite and used and not used_by(folder, _MARKS):
        raise OutputError(
            f"--output_dir {folder} holds {used[0].name}, which no run of this program wrote: --overwrite would delete "
            "it; give another folder"
        )
    claim_output(folder, OURS, resume=resume, overwrite=overwrite)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)  # until this run ends, the folder is not complete


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the ``checkpoint-N`` of the highest N that was written whole, or None."""
    found = {
        int(match.group(1)): entry
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(entry.name)) and (entry / STATE_FILE).is_file()
    }
    return found[max(found)] if found else None


@contextmanager
def publish_files(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder whose files move into ``folder`` when the block ends well.

    The file ``last``, by which readers know that a model is there, is moved after all others, so a reader never sees
    half a model. Files of an earlier, larger model (more shards) are removed.
    """
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".publish."))
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
