"""What ``--resume_from_checkpoint`` names. Pure."""

from __future__ import annotations

from pathlib import Path

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import publish
from alpaca_ray.train.adapter import ADAPTER_FILES


def restart_point(settings: TrainSettings) -> Path | None:
    """Return the folder from which a run is told to go on: a full state, or adapter weights alone; None if not told.

    Raises:
        SettingsError: it is not there, or holds neither.
    """
    if not settings.resume_from_checkpoint:
        return None
    path = Path(settings.resume_from_checkpoint).expanduser().resolve()
    if not path.is_dir():
        raise SettingsError(f"Checkpoint {settings.resume_from_checkpoint} not found (--resume_from_checkpoint)")
    if not any((path / name).is_file() for name in (publish.STATE_FILE, *ADAPTER_FILES)):
        raise SettingsError(
            f"--resume_from_checkpoint {settings.resume_from_checkpoint}: holds neither {publish.STATE_FILE} (a full "
            f"state) nor adapter weights ({', '.join(ADAPTER_FILES)})"
        )
    return path
