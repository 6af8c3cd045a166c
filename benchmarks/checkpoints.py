"""What checkpoints cost the training: the time they keep the training thread, against the time of a step.

Trains the model (the embedded one by default) for a few steps, with a checkpoint every few of them, and prints one JSON
object as its last line. A checkpoint is copied in the training thread and written beside it; the share is stated at the
default of --save_steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.progress import read_metrics
from alpaca_ray.train.runner import train


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--save_steps", type=int, default=6)
    parser.add_argument("--flags", default="", help="further flags of jobs/train.py, in one word")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_ADDRESS", "local")
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--model {arguments.model} --max_steps {arguments.steps} --save_steps {arguments.save_steps} "
        flags += f"--val_set_size 0 --logging_steps 1 --output_dir {folder}/out {arguments.flags}"
        content: dict[str, Any] = train(parse_settings(TrainSettings, flags.split(), description="")) or {}
        rows = [row for row in read_metrics(Path(folder) / "out") if "loss" in row]
        left = [row["seconds_left"] / max(1, row["total_steps"] - row["step"]) for row in rows[:-1]]
        size = sum(path.stat().st_size for path in (Path(folder) / "out").glob("checkpoint-*/*") if path.is_file())
        kept = len(list((Path(folder) / "out").glob("checkpoint-*")))
    step = left[-1]
    stall = content["checkpoint_seconds"] / content["checkpoints"]
    default = float(TrainSettings.model_fields["save_steps"].default)
    result = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "mode": content["mode"],
        "trainable_parameters": content["trainable_parameters"],
        "checkpoint_megabytes": round(size / max(1, kept) / 1e6, 1),
        "seconds_a_step": round(step, 4),
        "stall_seconds_a_checkpoint": round(stall, 4),
        "stall_share_of_a_step_at_default_save_steps": round(stall / (default * step), 6),
        "save_steps_default": default,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
