"""Where trackers keep their files: below the output folder, so that a resume finds them. Pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alpaca_ray.train.progress import TRACKER_FOLDER


def place_trackers(output: Path, trackers: Sequence[str]) -> None:
    """Point this process's trackers to a folder of theirs in ``output``; what the environment says already wins.

    Without this they would write into a worker's working directory, which Ray empties.
    """
    if not trackers:
        return
    folder = output / TRACKER_FOLDER
    places = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_DIR": str(folder),
        "MLFLOW_TRACKING_URI": (folder / "mlruns").absolute().as_uri(),
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    for name, place in places.items():
        os.environ.setdefault(name, place)
    folder.mkdir(exist_ok=True)  # wandb goes elsewhere where its folder is not there
