"""DeepSpeed's configuration file: completed, checked against the other settings, and what a resume needs. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.errors import SettingsError

# Keys that DeepSpeed needs and that follow from our own settings; "auto" lets transformers fill them in.
_FILLED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
_GATHER = "stage3_gather_16bit_weights_on_model_save"
# Written by DeepSpeed beside the states of a checkpoint; names the folder that holds them.
_MARK = "latest"
_STATES = "*_optim_states.pt"


def complete(config: dict[str, Any], path: str, expected: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return a DeepSpeed configuration in which nothing contradicts the run's own settings.

    What is missing or "auto" becomes "auto", which transformers fills from TrainingArguments.

    Args:
        path: the file it came from, for messages.
        expected: dotted key of the configuration -> the flag that decides it, and the value that follows from it.

    Raises:
        SettingsError: no ZeRO stage, weights that would not be saved whole, or a value that contradicts a flag.
    """
    config = dict(copy.deepcopy(config))
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if not isinstance(zero, dict) or isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise SettingsError(f"--deepspeed {path}: zero_optimization.stage must be 0, 1, 2 or 3, and is {stage!r}")
    if stage == 3:
        if zero.get(_GATHER, True) is not True:
            raise SettingsError(
                f"--deepspeed {path}: zero_optimization.{_GATHER} must be true: the model is saved in whole weights"
            )
        zero[_GATHER] = True
    for name in _FILLED:
        config.setdefault(name, "auto")
    for name in ("bf16", "fp16"):
        config.setdefault(name, {"enabled": "auto"})
        if not isinstance(config[name], dict):
            raise SettingsError(f"--deepspeed {path}: {name} must be an object such as {{'enabled': 'auto'}}")
        config[name].setdefault("enabled", "auto")
    for key, (flag, value) in expected.items():
        given = _at(config, key)
        if given is not None and given != "auto" and given != value:
            raise SettingsError(
                f"--deepspeed {path}: {key} is {given}, and {flag} makes it {value}: write 'auto' there, or give {flag}"
            )
    return config


def zero_stage(config: Mapping[str, Any] | None) -> int | None:
    """Return the ZeRO stage of a completed configuration, None without one."""
    return int(config["zero_optimization"]["stage"]) if config else None


def check_resume(checkpoint: Path, *, deepspeed: bool, workers: int, flag: str = "--resume") -> None:
    """Check that a full checkpoint can be resumed by this kind of run on this number of workers.

    DeepSpeed writes each worker's part of the optimiser state to a file of its own, and reads it back by the same
    number of workers only.

    Raises:
        SettingsError: it cannot.
    """
    mark = checkpoint / _MARK
    written_by_deepspeed = mark.is_file()
    if written_by_deepspeed != deepspeed:
        how = (
            "was written under DeepSpeed: give --deepspeed"
            if written_by_deepspeed
            else ("was written without DeepSpeed, which cannot read its optimiser state: leave --deepspeed out")
        )
        raise SettingsError(f"{flag}: {checkpoint} {how}, or start anew with --overwrite or another --output_dir")
    if not deepspeed:
        return
    states = checkpoint / mark.read_text(encoding="utf-8").strip()
    before = len(list(states.glob(_STATES)))
    if before != workers:
        raise SettingsError(
            f"{flag}: {checkpoint} was written by {before} worker{'s' if before != 1 else ''}, and DeepSpeed's state "
            f"cannot be divided anew: give --num_workers {before}, or train with --fsdp, which resumes on any number"
        )


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
