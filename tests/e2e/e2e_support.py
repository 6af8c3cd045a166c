"""What the end-to-end tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class DemoRun:
    """A finished demo: its folder, exit code and output."""

    folder: Path
    returncode: int
    output: str
