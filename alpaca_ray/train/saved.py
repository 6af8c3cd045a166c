"""A run's settings as they are kept: what was given, for ``--config``, and every resolved value, for reading. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from alpaca_ray.settings.train import TrainSettings

# Settings that say how this one command was run, not what it trained. Where the run began is told by its identity.
_NOT_SAVED = {"resume", "overwrite", "dry_run", "resume_from_checkpoint"}
_HEAD = "# What the run was given, for `--config`; every resolved value stands in run.json.\n"


def given_yaml(settings: TrainSettings, *, begun_from: Mapping[str, str] | None = None) -> str:
    """Return what the user gave, and the model, as a file that ``--config`` takes back to the same settings.

    Defaults are left out: given by name they would mean more (a batch size that must be kept, a precision that must
    be there). A value given as none stays none.

    Args:
        begun_from: the checkpoint from which the run began (``restart.origin``).
    """
    names = [name for name in TrainSettings.model_fields if settings.was_given(name) and name not in _NOT_SAVED]
    values = settings.to_dict()
    kept: dict[str, Any] = {settings.model_flag.removeprefix("--"): settings.model_name}
    kept |= {name: values[name] for name in names}
    kept.update(kept.pop("training_arguments", {}))
    if begun_from:
        kept["resume_from_checkpoint"] = begun_from["path"]
    return _HEAD + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def resolved_yaml(settings: TrainSettings) -> str:
    """Return every resolved value that is not none, as YAML."""
    values = {name: value for name, value in settings.to_dict().items() if value is not None}
    values.update(values.pop("training_arguments", {}))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
