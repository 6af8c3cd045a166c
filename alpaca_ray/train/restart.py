"""What ``--resume_from_checkpoint`` names. Pure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import publish, whole
from alpaca_ray.train.adapter import ADAPTER_FILES

_FLAG = "--resume_from_checkpoint"
# Of a larger file only the beginning and the end are read: a model's weights are many gigabytes.
_READ_WHOLE = 64 * 1024**2
_READ_PART = 1024**2


def with_own_checkpoint(settings: TrainSettings) -> TrainSettings:
    """Return settings in which a checkpoint of the run's own folder means ``--resume``, as it did in Alpaca-LoRA.

    Raises:
        SettingsError: it is not the newest of that folder, from which a run goes on.
    """
    output = Path(settings.output_dir).expanduser().resolve()
    given = Path(settings.resume_from_checkpoint or "").expanduser().resolve()
    if not settings.resume_from_checkpoint or settings.overwrite or given.parent != output:
        return settings
    newest = publish.newest_checkpoint(output)
    if newest is None or not (given / publish.STATE_FILE).is_file():
        return settings
    if given != newest.resolve():
        raise SettingsError(
            f"{_FLAG} {settings.resume_from_checkpoint} is not the newest checkpoint of --output_dir, which is "
            f"{newest.name}: give that one, or another --output_dir to go on from an older one"
        )
    changed: dict[str, Any] = {"resume": True, "resume_from_checkpoint": None}
    return settings.model_copy(update=changed)


def restart_point(settings: TrainSettings) -> Path | None:
    """Return the folder from which a run is told to begin: a full state, or adapter weights alone; None if not told.

    Beside ``--resume`` it need not be there any more once the run has a checkpoint of its own.

    Raises:
        SettingsError: it is not there, holds neither, or a full state is not whole.
    """
    if not settings.resume_from_checkpoint:
        return None
    path = Path(settings.resume_from_checkpoint).expanduser().resolve()
    if not path.is_dir():
        if settings.resume and publish.newest_checkpoint(Path(settings.output_dir).expanduser()):
            return None
        raise SettingsError(f"Checkpoint {settings.resume_from_checkpoint} not found ({_FLAG})")
    if not any((path / name).is_file() for name in (publish.STATE_FILE, *ADAPTER_FILES)):
        raise SettingsError(
            f"{_FLAG} {settings.resume_from_checkpoint}: holds neither {publish.STATE_FILE} (a full state) nor adapter "
            f"weights ({', '.join(ADAPTER_FILES)})"
        )
    if (path / publish.STATE_FILE).is_file() and (reason := whole.fault(path)):
        raise SettingsError(f"{_FLAG} {settings.resume_from_checkpoint}: is not whole: {reason}")
    return path


def origin(folder: Path | None) -> dict[str, str] | None:
    """Return what a run's identity says of the checkpoint it begins from: its ``path``, and the ``digest`` of what
    counts in it, so that it is known again after it was moved.
    """
    if folder is None:
        return None
    if (folder / publish.STATE_FILE).is_file():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    else:
        files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    whole = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        whole.update(f"{path.relative_to(folder)} {size}\n".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            if size <= _READ_WHOLE:
                whole.update(file.read())
            else:
                whole.update(file.read(_READ_PART))
                file.seek(-_READ_PART, os.SEEK_END)
                whole.update(file.read())
    return {"path": str(folder), "digest": whole.hexdigest()[:12]}
