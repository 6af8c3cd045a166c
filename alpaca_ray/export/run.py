"""``jobs/export.py``: from a command's settings to the function that does it."""

from __future__ import annotations

from pathlib import Path

from alpaca_ray.export.merge import merge
from alpaca_ray.export.state_dict import state_dict
from alpaca_ray.settings.export import ExportSettings, MergeSettings, StateDictSettings


def export(settings: ExportSettings) -> Path:
    """Run the export that the settings describe and return its folder.

    Raises:
        ModelError, OutputError, SettingsError: as a line that says what to do; nothing is written then.
    """
    if isinstance(settings, MergeSettings):
        return merge(settings)
    if isinstance(settings, StateDictSettings):
        return state_dict(settings)
    raise TypeError(f"no export for {type(settings).__name__}")
