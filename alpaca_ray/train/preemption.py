"""What a worker does between two steps so that the run survives: take note of checkpoints, and of warnings.

A spot machine is warned seconds to minutes before it is taken away. On the warning every worker writes a checkpoint at
once, waits until it is on the disk, and goes on, and writes another one shortly before the deadline, where that is
known; Ray Train starts the workers anew when the machine is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from transformers import TrainerCallback

from alpaca_ray.train.agree import alone

# Ray looks for machines that are about to go every five seconds; to ask much more often would only cost time.
_EVERY_SECONDS = 2.0
# Before the machine goes, what was learnt since the warning is saved, too.
_LAST_SECONDS = 15.0


class Survival(TrainerCallback):
    """Saves on a preemption warning, and lets the trainer note finished checkpoints, on every worker alike.

    Args:
        watch: whether machines may be taken away; without it no warning is asked for.
        on_first_step: called once, when the first step has been taken.
    """

    def __init__(self, *, watch: bool, on_first_step: Callable[[], None]) -> None:
        self.trainer: Any = None
        self._watch = watch
        self._on_first_step: Callable[[], None] | None = on_first_step
        self._warned: set[str] = set()
        self._closing = False
        self._next_look = 0
        self._looked_at: tuple[int, float] | None = None
        self._must_settle = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint where a machine is about to go.

        Raises:
            AlpacaRayError: the checkpoint under way could not be written.
        """
        if self._on_first_step is not None:
            self._on_first_step()
            self._on_first_step = None
        self.trainer.take_note()
        control.should_save = control.should_save or self._must_settle  # in case nothing was saved at the last step
        if self._watch and state.global_step >= self._next_look:
            self._look(state.global_step, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for a checkpoint that a warning asked for: the machine may be gone before the next step."""
        if self._must_settle:
            self._must_settle = False
            self.trainer.settle_checkpoint()

    def _look(self, step: int, control: Any) -> None:
        info = ray.train.get_preemption_info()
        fresh = set(info.preempted_node_ids) - self._warned if info is not None else set()
        self._warned |= fresh
        deadline = info.deadline_ms if info is not None else None
        closing = deadline is not None and not self._closing and time.time() > deadline / 1000 - _LAST_SECONDS
        seconds, closing = self._agree(step, closing)
        self._closing = self._closing or closing
        if fresh or closing:
            control.should_save = self._must_settle = True
        self._next_look = step + max(1, int(_EVERY_SECONDS / max(seconds, 1e-6)))

    def _agree(self, step: int, closing: bool) -> tuple[float, bool]:
        """Return the slowest worker's seconds a step, and whether any clock says that the end is near.

        All workers must look again at the same step, and save alike.
        """
        now = time.perf_counter()
        since, self._looked_at = self._looked_at, (step, now)
        seconds = (now - since[1]) / (step - since[0]) if since else _EVERY_SECONDS
        both = torch.tensor([seconds, float(closing)], dtype=torch.float64)
        if not alone():
            dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return float(both[0]), bool(both[1])
