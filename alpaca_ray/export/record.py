"""What every export ends with: ``run.json``, and the lines that say what it took."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.export.output import STAGE
from alpaca_ray.manifest import write_manifest
from alpaca_ray.settings.export import ExportSettings
from alpaca_ray.storage import location


def record(
    staging: Path,
    settings: ExportSettings,
    *,
    inputs: Iterable[Mapping[str, Any]],
    outputs: Iterable[str],
    **extra: Any,
) -> None:
    """Write ``run.json`` into a staged folder: what was read and written, with digests, and the peak of memory."""
    write_manifest(
        staging,
        STAGE,
        settings=settings.to_dict(),
        inputs=inputs,
        outputs=sorted(outputs),
        command=settings.command,
        peak_memory_bytes=peak_memory(),
        **extra,
    )


def peak_memory() -> int:
    """Return the most memory that this process has held at once, in bytes; pages of files that it read count too."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure is inherited from the process that started this one
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line:
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say_done(folder: Path, *, model_bytes: int) -> None:
    """Print where the result lies and what it took in memory."""
    say(f"peak memory {peak_memory() / 1e9:.2f} GB, for {model_bytes / 1e9:.2f} GB of weights")
    say(f"wrote {location(folder)}")
