"""From Trainer's events to metrics.jsonl and Ray Train's reports."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from transformers import TrainerCallback

from alpaca_ray.errors import TrainingError
from alpaca_ray.train import progress


class Reporter(TrainerCallback):
    """Writes a row for each log and each validation, and reports it to Ray Train.

    Trainer raises its events on every worker alike, so every worker calls ``ray.train.report``, a barrier, as often as
    the others.
    """

    def __init__(self, folder: Path) -> None:
        self.trainer: Any = None
        self.last_validation_loss: float | None = None
        self.last_validation_step: int | None = None
        self.first_step_at: float | None = None
        self.mean_rate: float | None = None
        self._folder = folder
        self._step_began = 0.0
        self._steps = 0
        self._seconds = self._seconds_logged = 0.0
        self._tokens_logged = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start a step's clock: validation and saving are not counted as training time."""
        self.first_step_at = self.first_step_at or time.time()
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self._seconds += time.perf_counter() - self._step_began
        self._steps += 1

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write and report a row.

        Raises:
            TrainingError: the loss is not a number any more.
        """
        logs = logs or {}
        row: dict[str, Any] = {"step": state.global_step, "total_steps": state.max_steps}
        for name in ("epoch", "loss", "learning_rate", "grad_norm", "eval_loss"):
            if name in logs:
                row[name] = logs[name]
        if "loss" not in row and "eval_loss" not in row:
            return  # Trainer's closing summary
        for name in ("loss", "eval_loss"):
            if name in row and not math.isfinite(row[name]):
                raise TrainingError(
                    f"{name} is {row[name]} at step {state.global_step}: training stopped; the newest checkpoint in "
                    f"{self._folder} is from before"
                )
        if "eval_loss" in row:
            self.last_validation_loss, self.last_validation_step = row["eval_loss"], state.global_step
        else:
            self._add_speed(row, state)
        if state.is_world_process_zero:
            progress.append(self._folder, row)
        ray.train.report(row)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the mean speed of the whole run."""
        self._measure()

    def _add_speed(self, row: dict[str, Any], state: Any) -> None:
        tokens = self._measure()
        if self._seconds > self._seconds_logged:
            row["tokens_per_second"] = round((tokens - self._tokens_logged) / (self._seconds - self._seconds_logged), 1)
            row["seconds_left"] = round(self._seconds / self._steps * (state.max_steps - state.global_step), 1)
        self._seconds_logged, self._tokens_logged = self._seconds, tokens

    def _measure(self) -> int:
        """Return the real tokens trained on by all workers. Every worker must take part."""
        counted = torch.tensor(self.trainer.tokens_seen, dtype=torch.int64, device=self.trainer.args.device)
        tokens = int(self.trainer.accelerator.reduce(counted, reduction="sum").item())
        if self._seconds:
            self.mean_rate = round(tokens / self._seconds, 1)
        return tokens
