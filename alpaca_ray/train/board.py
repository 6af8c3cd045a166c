"""Tensorboard through a run and its interruptions: each step shown once, the last row written. Imports transformers.

transformers' own callback closes its file when the last step is done. The validation that follows opens another, named
by the second, which may be the same one and then empties it; and nothing closes that. A resume logs anew what an
interrupted run had logged after its last checkpoint.
"""

from __future__ import annotations

from typing import Any

from transformers.integrations import TensorBoardCallback


class Board(TensorBoardCallback):
    """transformers' tensorboard callback with one file a process, which hides what is logged anew."""

    def __init__(self, step: int) -> None:
        """Go on from ``step``; -1 where the run begins anew."""
        super().__init__()
        self._step = step

    def _init_summary_writer(self, args: Any) -> None:
        # The file begins with a mark on which tensorboard drops what older files have from that step on.
        self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=self._step + 1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put all rows on the disk, so that a kill loses none from before a checkpoint."""
        if self.tb_writer:
            self.tb_writer.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the file open: the validation of what is published is still to come."""

    def close(self) -> None:
        """Write what is left; the end of this process's part in the run."""
        if self.tb_writer:
            self.tb_writer.close()
            self.tb_writer = None


def take_over(trainer: Any, step: int) -> None:
    """Put a ``Board`` in the place of transformers' callback, where the run is watched by tensorboard."""
    if trainer.pop_callback(TensorBoardCallback) is not None:
        trainer.add_callback(Board(step))


def close(trainer: Any) -> None:
    """Close a trainer's ``Board``, where it has one."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Board):
            callback.close()
