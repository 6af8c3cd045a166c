"""Which samples were really learnt in which step, written as they go through the model: ``samples.jsonl``.

Each worker appends a row ``{"step", "epoch", "worker", "ids"}`` for each step it takes, so the rows of a step together
name its samples, on any number of workers and through any number of restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from alpaca_ray.train import progress

_KEY = "sample_index"


class SeenSamples(TrainerCallback):
    """Writes the rows. Give ``numbered`` samples to the trainer, and set its ``seen`` to this.

    Args:
        folder: where the file lies.
        ids: the records' ids, in the order of the samples.
        worker: this worker's rank.
    """

    def __init__(self, folder: Path, ids: Sequence[str], worker: int) -> None:
        self._folder, self._ids, self._worker = folder, ids, worker
        self._indices: list[int] = []

    @staticmethod
    def numbered(samples: Sequence[Any]) -> list[Any]:
        """Return the samples with their numbers."""
        return [{**sample, _KEY: index} for index, sample in enumerate(samples)]

    @staticmethod
    def collate(inner: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        """Return a collate function whose batches carry the numbers of their samples."""
        return lambda samples: {**inner(samples), _KEY: torch.tensor([sample[_KEY] for sample in samples])}

    def take(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Note a batch that is about to go through the model, and return it without the numbers."""
        self._indices += batch[_KEY].tolist()
        return {name: value for name, value in batch.items() if name != _KEY}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the step's row."""
        row = {
            "step": state.global_step,
            "epoch": state.epoch,
            "worker": self._worker,
            "ids": [self._ids[index] for index in self._indices],
        }
        self._indices = []
        progress.append(self._folder, row, progress.SAMPLES_FILE)
