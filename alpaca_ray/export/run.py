"""``jobs/export.py``: from a command's settings to the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpaca_ray.export.diff import diff_make
from alpaca_ray.export.merge import merge
from alpaca_ray.export.ollama import ollama
from alpaca_ray.export.recover import diff_recover
from alpaca_ray.export.state_dict import state_dict
from alpaca_ray.settings.export import ExportSettings

_EXPORTS: dict[str, Callable[[Any], Path]] = {
    "merge": merge,
    "state-dict": state_dict,
    "diff make": diff_make,
    "diff recover": diff_recover,
    "ollama": ollama,
}


def export(settings: ExportSettings) -> Path:
    """Run the export that the settings describe and return its folder.

    Raises:
        ModelError, OutputError, SettingsError: as a line that says what to do; nothing is written then.
    """
    return _EXPORTS[settings.command](settings)
