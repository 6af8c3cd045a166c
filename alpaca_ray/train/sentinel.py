"""Stops a run whose loss or weights are no numbers any more, before a checkpoint could be made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from alpaca_ray.errors import TrainingError
from alpaca_ray.train import progress, publish
from alpaca_ray.train.agree import alone

_NAMED = 8  # sample ids that the message gives; metrics.jsonl has all of them


class Sentinel(TrainerCallback):
    """Watches the loss of each step. ``trainer`` is set by whoever builds both.

    A look at a GPU's memory makes the host wait for it, so flags are collected there and read when a row is logged or
    a checkpoint is due; on the CPU of a lone worker at every step. Workers decide together: they stop alike.
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        """Watch a run that writes into ``folder``.

        Args:
            ids: the records' ids, in the order of the trainer's samples.
        """
        self.trainer: Any = None
        self._folder, self._ids = folder, ids
        self._flags: list[tuple[int, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note whether the loss is still finite, and look where it matters.

        Raises:
            TrainingError: it is not; on every worker alike.
        """
        self._flags.append((state.global_step, torch.isfinite(self.trainer._tr_loss.detach()).all()))
        cheap = args.device.type == "cpu" and args.world_size == 1
        if cheap or control.should_log or control.should_save or control.should_evaluate:
            self._look(state)
        if control.should_save:
            self._check_weights(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the weights before a checkpoint of an epoch."""
        if control.should_save:
            self._check_weights(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at everything before the model is published."""
        self._look(state)
        self._check_weights(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look at a validation loss.

        Raises:
            TrainingError: it is not finite (every worker has the same one).
        """
        loss = (logs or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            self._stop(state, state.global_step, f"the validation loss is {loss}", of_step=False)

    def _look(self, state: Any) -> None:
        bad = [step for step, finite in self._flags if not bool(finite)]
        self._flags.clear()
        first = self._agree(bad[0] if bad else 0)
        if first:
            self._stop(state, first, f"the loss is not finite ({self.trainer._tr_loss.detach().item()})")

    def _check_weights(self, state: Any) -> None:
        from alpaca_ray.train.bare import local

        parts = [local(part) for part in self.trainer.model.parameters() if part.requires_grad]
        sums = [part.float().sum() if part.numel() < 1 << 20 else part.sum(dtype=torch.float64) for part in parts]
        finite = not sums or bool(torch.stack([part.float() for part in sums]).isfinite().all())
        if self._agree(0 if finite else max(1, state.global_step)):
            self._stop(state, state.global_step, "the weights are not finite any more, while the loss was")

    def _agree(self, step: int) -> int:
        """Return the earliest step above 0 that any worker names, or 0."""
        if alone():
            return step
        never = torch.iinfo(torch.int64).max
        found = torch.tensor(step or never, dtype=torch.int64, device=self.trainer.args.device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        earliest = int(found.item())
        return 0 if earliest == never else earliest

    def _stop(self, state: Any, step: int, what: str, *, of_step: bool = True) -> None:
        text = f"{what} at step {step}: training stopped"
        row: dict[str, Any] = {"step": step, "total_steps": state.max_steps, "stopped": what}
        if of_step:
            indices = self.trainer.get_train_dataloader().batch_sampler.of_step(step)
            row["sample_ids"] = ids = [self._ids[index] for index in indices]
            more = f" and {len(ids) - _NAMED} more, in {progress.METRICS_FILE}" if len(ids) > _NAMED else ""
            text += f"; its samples: {', '.join(ids[:_NAMED])}{more}"
        if state.is_world_process_zero:
            progress.append(self._folder, row)
        self.trainer.settle_checkpoint()  # one may still be on its way to the disk
        newest = publish.newest_checkpoint(self._folder)
        kept = f"the last good checkpoint is {newest}" if newest else "no checkpoint was written before it"
        raise TrainingError(f"{text}; {kept}. Try a lower --learning_rate, or look at these samples")
