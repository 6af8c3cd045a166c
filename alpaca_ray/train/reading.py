"""A checkpoint read back: what cannot be read ends in one line on every worker, the best one is found again.

Imports torch.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from alpaca_ray.errors import AlpacaRayError, TrainingError
from alpaca_ray.train import whole
from alpaca_ray.train.agree import first_error

_UNREADABLE = (
    OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, CheckpointException, pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # fmt: skip


@contextmanager
def checkpoint(folder: str | Path | None) -> Iterator[None]:
    """Read a checkpoint in the block, on every worker alike; without a folder this does nothing.

    Raises:
        TrainingError: one of the workers cannot read it; raised on every worker.
    """
    if folder is None:
        yield
        return
    error: AlpacaRayError | None = None
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except AlpacaRayError as caught:
        error = caught
    except _UNREADABLE as caught:
        error = TrainingError(f"{folder}: cannot be read: {_reason(caught)}")
        error.__cause__ = caught
    if (first := first_error(error)) is not None:
        raise first


def check_loaded(model: Any, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Check that a checkpoint's whole weights went into a model, name by name. A tied one needs to be there once.

    Raises:
        TrainingError: some did not, and would go on untrained.
    """
    state = model.state_dict()
    tied = {weight.data_ptr() for name, weight in state.items() if name not in missing}
    lost = [name for name in missing if name not in state or state[name].data_ptr() not in tied]
    if lost or unexpected:
        told = f"lacks {lost[0]}" if lost else f"holds {unexpected[0]}, which the model has not"
        raise TrainingError(f"the checkpoint's weights are another model's, or under other names: it {told}")


def repoint_best(state: Any, resume: Path, output: Path, needed: bool) -> None:
    """Let a resumed state name its best checkpoint where it lies now: the run's folder may have been moved.

    Args:
        state: TrainerState, whose ``best_model_checkpoint`` is set.
        resume: the checkpoint from which it was read.
        output: the run's folder.
        needed: whether the best weights are what the run is to publish.

    Raises:
        TrainingError: they are, and the checkpoint is gone, or broken.
    """
    recorded = json.loads((resume / whole.STATE_FILE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    if not recorded:
        return
    found = [path for path in (output / Path(recorded).name, Path(recorded)) if whole.fault(path) is None]
    if not found and needed:
        raise TrainingError(
            f"{resume}: the best checkpoint so far, {Path(recorded).name}, is not in {output}, or not whole: put it "
            "back, or give --load_best_model_at_end False to publish the last weights"
        )
    state.best_model_checkpoint = str(found[0]) if found else None


def _reason(error: BaseException) -> str:
    """Return an error in one line: the last of those that say something, below a traceback of several workers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if isinstance(error, CheckpointException) else lines[0]
