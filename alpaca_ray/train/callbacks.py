"""From Trainer's events to metrics.jsonl and Ray Train's reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback

from alpaca_ray.errors import OutputError
from alpaca_ray.full_disk import naming_full_disk
from alpaca_ray.train import flops, memory, progress
from alpaca_ray.train.reporting import RareReports


class Reporter(TrainerCallback):
    """Writes a row for each log and each validation, and reports some of them to Ray Train.

    Trainer raises its events on every worker alike, so every worker calls ``ray.train.report``, a barrier, as often as
    the others.
    """

    def __init__(
        self, folder: Path, *, parameters: int, mode: Literal["lora", "full"], gpus_per_worker: int = 1
    ) -> None:
        """Report a run that writes into ``folder``.

        Args:
            parameters: of the whole model, for the share of a GPU's peak.
            mode: what is trained, for the same.
            gpus_per_worker: over which each worker spreads the model, for the same.
        """
        self.trainer: Any = None
        self.last_validation_loss: float | None = None
        self.last_validation_step: int | None = None
        self.first_step_at: float | None = None
        self.mean_rate: float | None = None
        self.padding_share: float | None = None
        self._report = RareReports()
        self._folder, self._parameters, self._mode = folder, parameters, mode
        self._gpus_per_worker = gpus_per_worker
        self._step_began = 0.0
        self._steps = 0
        self._seconds = self._seconds_logged = 0.0
        self._tokens_logged = self._slots_logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what comes first, where it is slow."""
        if args.eval_on_start and state.is_world_process_zero:
            progress.phase(self._folder, f"first validation: {len(self.trainer.eval_dataset)} records")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start a step's clock: validation and saving are not counted as training time."""
        self.first_step_at = self.first_step_at or time.time()
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it, and say how long the first step took, where its row comes later or not at all."""
        self._seconds += time.perf_counter() - self._step_began
        self._steps += 1
        if self._steps == 1 and not control.should_log and state.is_world_process_zero:
            every = f"; a line every {state.logging_steps} steps" if args.logging_strategy == "steps" else ""
            progress.phase(
                self._folder, f"step {state.global_step}/{state.max_steps} took {self._seconds:.1f} s{every}"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write and report a row.

        Raises:
            OutputError: it cannot be written, or another run has the folder; raised on every worker.
        """
        logs = logs or {}
        row: dict[str, Any] = {"step": state.global_step, "total_steps": state.max_steps}
        for name in ("epoch", "loss", "learning_rate", "grad_norm", "eval_loss"):
            if name in logs:
                row[name] = logs[name]
        if "loss" not in row and "eval_loss" not in row:
            return  # Trainer's closing summary
        if "eval_loss" in row:
            self.last_validation_loss, self.last_validation_step = row["eval_loss"], state.global_step
        else:
            self._add_speed(row, state)
        error: OutputError | None = None
        if state.is_world_process_zero:
            try:
                if not self.trainer.still_ours():
                    raise OutputError(f"{self._folder}: another run has taken this folder over: training stopped")
                with naming_full_disk(str(self._folder / progress.METRICS_FILE)):
                    progress.append(self._folder, row)
            except OutputError as caught:  # the other workers must hear of it
                error = caught
        self._report(row, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the mean speed of the whole run."""
        self._measure()

    def _add_speed(self, row: dict[str, Any], state: Any) -> None:
        tokens, slots = self._measure()
        on_gpu = not self.trainer.args.use_cpu
        if self._seconds > self._seconds_logged:
            rate = (tokens - self._tokens_logged) / (self._seconds - self._seconds_logged)
            row["tokens_per_second"] = round(rate, 1)
            row["seconds_left"] = round(self._seconds / self._steps * (state.max_steps - state.global_step), 1)
            if on_gpu:
                device, gpus = torch.cuda.get_device_name(), self.trainer.args.world_size * self._gpus_per_worker
                share = flops.utilisation(rate, self._parameters, self._mode, device, gpus)
                if share is not None:
                    row["model_flops_utilisation"] = round(share, 4)
        if slots > self._slots_logged:
            row["padding_share"] = round(1 - (tokens - self._tokens_logged) / (slots - self._slots_logged), 4)
        row["memory_bytes"] = memory.in_use(on_gpu)
        self._seconds_logged, self._tokens_logged, self._slots_logged = self._seconds, tokens, slots

    def _measure(self) -> tuple[int, int]:
        """Return the real tokens, and the places in batches, that all workers trained on. Every worker takes part."""
        seen = [self.trainer.tokens_seen, self.trainer.slots_seen]
        counted = torch.tensor(seen, dtype=torch.int64, device=self.trainer.args.device)
        tokens, slots = self.trainer.accelerator.reduce(counted, reduction="sum").tolist()
        if self._seconds:
            self.mean_rate = round(tokens / self._seconds, 1)
            self.padding_share = round(1 - tokens / slots, 4) if slots else None
        return tokens, slots
