"""transformers' Trainer made hard to kill: checkpoints beside the work, a resume that repeats nothing. Imports torch.

A checkpoint is copied to host memory at the end of a step and written by a thread; the next one waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import set_seed

from alpaca_ray.errors import OutputError
from alpaca_ray.train import agree, checkpoints, reading, snapshot
from alpaca_ray.train.background import Background
from alpaca_ray.train.sharded import ShardedState, is_sharded

_RUNNING, _DONE, _FAILED = 0, 1, 2


class SurvivingTrainer(Trainer):
    """A Trainer whose checkpoints cost the training thread a copy, and that resumes on any number of workers."""

    def __init__(self, **options: Any) -> None:
        self.on_checkpoint: Callable[[Path], None] = lambda checkpoint: None  # once it is whole, on every worker alike
        self.still_ours: Callable[[], bool] = lambda: True  # asked by the first worker before one gets its name
        self.checkpoint_seconds = 0.0  # that checkpoints took of the training thread
        self.checkpoints_saved = 0
        self.seen: Any = None  # a SeenSamples, where the samples of each step are recorded
        self._background = Background()
        self._pending: Path | None = None
        self._saved_step = -1
        self._sharded_state: ShardedState | None = None
        self._deepspeed_folder: Path | None = None
        super().__init__(**options)

    # Saving

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Begin to write the checkpoint of this step; every worker takes part.

        Raises:
            AlpacaRayError: the one before could not be written; raised on every worker.
        """
        if self.state.global_step == self._saved_step:
            return  # two reasons to save the same step
        began = time.perf_counter()
        self.settle_checkpoint()
        self.store_flos()
        self._saved_step = self.state.global_step
        target = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self._name_best(target)
        if self.is_deepspeed_enabled:
            work = checkpoints.deepspeed_work(self, lambda folder: self._save_deepspeed(model, folder), target)
        else:
            self._export_callbacks()
            if self.is_fsdp_enabled:
                work = checkpoints.sharded_work(self, self._sharded(), target)
            else:
                work = checkpoints.whole_work(self, target)
        self._pending = target
        self._background.start(work, str(target))
        self.checkpoint_seconds += time.perf_counter() - began
        self.checkpoints_saved += 1

    def settle_checkpoint(self) -> None:
        """Wait until the checkpoint under way is whole on the disk; every worker takes part.

        Raises:
            AlpacaRayError: one of the workers could not write it; raised on every worker.
        """
        if self._pending is not None:
            self._background.wait()
            self.take_note()

    def take_note(self) -> None:
        """Note, on every worker alike, whether the checkpoint under way is whole by now; does not wait for it.

        Raises:
            AlpacaRayError: one of the workers could not write it; raised on every worker.
        """
        if self._pending is None:
            return
        status = _RUNNING if self._background.busy else _FAILED if self._background.error else _DONE
        least, most = agree.extremes(status)
        if most == _FAILED:
            self._pending = None
            self._background.wait()
            raise agree.first_error(self._background.error) or OutputError(f"{self.args.output_dir}: cannot be written")
        if least == _DONE:
            checkpoint, self._pending = self._pending, None
            self.on_checkpoint(checkpoint)
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(checkpoint))

    def finish_writing(self) -> None:
        """Let a checkpoint that is being written come to its end; for the end of the process, whatever ended it."""
        self._background.wait()

    def _save_deepspeed(self, model: Any, folder: Path) -> None:
        best = self.state.best_model_checkpoint
        self._deepspeed_folder = folder
        try:
            super()._save_checkpoint(model, None)
        finally:
            self._deepspeed_folder = None
        self.state.best_model_checkpoint = best
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._deepspeed_folder or super()._get_output_dir(trial))

    def _name_best(self, target: Path) -> None:
        """Let the state name the best checkpoint if it is there, or is this one."""
        if self.state.best_global_step:
            best = target.with_name(f"checkpoint-{self.state.best_global_step}")
            if best == target or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _export_callbacks(self) -> None:
        for callback in [*self.callback_handler.callbacks, self.control]:
            if not isinstance(callback, ExportableState):
                continue
            known = self.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(known, list):
                known.append(callback.state())
            else:
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()

    def _sharded(self) -> ShardedState:
        if self._sharded_state is None:
            frozen_base = hasattr(self.model, "peft_config")
            self._sharded_state = ShardedState(self.model, self.optimizer, frozen_base=frozen_base)
        return self._sharded_state

    def training_step(self, model: Any, inputs: Any, *options: Any, **more: Any) -> torch.Tensor:
        """Take a micro-batch through the model and back, and note its samples where they are recorded."""
        return super().training_step(model, self.seen.take(inputs) if self.seen else inputs, *options, **more)

    # Resuming

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if self.seen:
            train_dataloader.collate_fn = self.seen.collate(train_dataloader.collate_fn)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _init_training_state(self, max_steps: int, *rest: Any) -> tuple[int, int]:
        resume = rest[2] if len(rest) > 2 else None
        found: tuple[int, int] = super()._init_training_state(max_steps, *rest)
        if resume:
            reading.repoint_best(self.state, Path(resume), Path(self.args.output_dir), self.args.load_best_model_at_end)
        # How often to log, validate and save is this command's, not what the checkpoint was written under.
        self.state.compute_steps(self.args, max_steps)
        return found

    def _run_epoch(self, **options: Any) -> None:
        """Pass over the data; not a step more where the run has taken them all and only its publication is left."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**options)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore this worker's random state; with another number of workers, begin one that no step had before."""
        if checkpoint is None:
            return
        workers = self.args.world_size
        names = {snapshot.random_state_name(rank, workers) for rank in range(workers)}
        if {path.name for path in Path(checkpoint).glob("rng_state*.pth")} == names:
            with reading.checkpoint(checkpoint):
                super()._load_rng_state(checkpoint)
        else:
            set_seed(self.args.seed + 1_000_003 * (self.state.global_step + 1) + self.args.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading.checkpoint(resume_from_checkpoint):
            if is_sharded(Path(resume_from_checkpoint)) and self.is_fsdp_enabled:
                self._sharded().load_weights(Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result)
        reading.check_loaded(self.model, load_result.missing_keys, load_result.unexpected_keys)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading.checkpoint(checkpoint):
            if checkpoint is None or not (is_sharded(Path(checkpoint)) and self.is_fsdp_enabled):
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            self._sharded().load_optimizer(Path(checkpoint))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        with reading.checkpoint(best):
            if is_sharded(best) and self.is_fsdp_enabled:
                self._sharded().load_weights(best)
            else:
                super()._load_best_model()

    def _finalize_training(self, *options: Any) -> Any:
        self.settle_checkpoint()
        # Beside a best checkpoint and with a limit of 1, Trainer would delete the newest, from which a resume goes on.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*options)
        finally:
            self.args.save_total_limit = limit
