"""jobs/train.py as a command, with relative paths as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import alpaca_ray
from alpaca_ray.records import read_records

JOB = Path(alpaca_ray.__file__).parent.parent / "jobs" / "train.py"

pytestmark = pytest.mark.ray  # starts a cluster of its own


def test_relative_paths_mean_the_users_folder_and_the_last_line_says_where(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "base")
    records = [{k: r[k] for k in ("instruction", "input", "output")} for r in read_records("seeds")[:12]]
    (tmp_path / "data.json").write_text(json.dumps(records))
    flags = "--model base --data_path data.json --output_dir out/run --max_steps 2 --threads 1"
    environment = {**os.environ, "PYTHONPATH": str(JOB.parent.parent)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(JOB), *flags.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[-1].startswith(f"adapter saved to {tmp_path / 'out' / 'run'} on node ")
    assert any(line.startswith("step 1/2 | loss ") for line in lines)
    assert any(line.startswith("validation loss: ") for line in lines)
    config = json.loads((tmp_path / "out" / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    times = json.loads((tmp_path / "out" / "run" / "run.json").read_text())["times"]
    assert times["start"] <= times["cluster"] <= times["worker"] <= times["model"] <= times["first_step"]
