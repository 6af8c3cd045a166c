"""No silent corruption: what a run proves before its first step and after its last. Runs inside every worker alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from alpaca_ray.errors import TrainingError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import agree, proof_forward, proof_loss, proof_saved, proof_weights
from alpaca_ray.train.bare import is_sharded
from alpaca_ray.train.decoder import beside_text
from alpaca_ray.train.evaluating import evaluating
from alpaca_ray.train.plan import Plan

_SETTLED = 3  # steps after which an adapter that learns at all is no longer zero


class Prover(TrainerCallback):
    """Runs the proofs when the model is wrapped, its checkpoint loaded, and nothing trained yet; then after the end.

    ``trainer`` is set by whoever builds both. ``report`` holds what was proven, and how many seconds it took.
    """

    def __init__(self, settings: TrainSettings, plan: Plan, packing: str) -> None:
        self.trainer: Any = None
        self.report: dict[str, Any] = {}
        self._settings, self._plan, self._packed = settings, plan, packing != "none"
        self._moving: proof_weights.Movement | None = None
        self._moves = self._steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Prove the trainable weights, the batches, the shards and the loss.

        Raises:
            TrainingError: a proof fails, on whichever worker; it is raised on all of them.
        """
        began = time.perf_counter()
        model = self.trainer.model
        self._everywhere(self._check_weights)
        with evaluating(model), torch.no_grad(), _uncompiled():
            self._everywhere(self._check_batches)
            self._everywhere(self._check_shards)
            self._everywhere(self._check_loss)
        self._moving = proof_weights.Movement(model)
        self.report["seconds_before"] = round(time.perf_counter() - began, 2)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the steps that should have changed something, and see after a few that each adapter learns.

        Raises:
            TrainingError: one does not while others do; raised on every worker.
        """
        rates = [group["lr"] for group in self.trainer.optimizer.param_groups]
        if max(rates, default=0.0) > 0 and not getattr(self.trainer.accelerator, "optimizer_step_was_skipped", False):
            self._moves += 1
        self._steps += 1  # not the moves: under FSDP in float16 one worker may skip a step that another takes
        if self._steps == _SETTLED:
            self._everywhere(self._check_layers)

    def check_saved(self, folder: Path) -> None:
        """Read what was saved back from its files and hold it against memory, tensor by tensor. After the last step.

        Raises:
            TrainingError: they differ, or no trained weight changed, or not each adapter; raised on every worker.
        """
        began = time.perf_counter()
        self._everywhere(self._check_moved)
        writes = self.trainer.args.process_index == 0
        check = proof_saved.check_adapter if self._plan.mode == "lora" else proof_saved.check_model

        def compare() -> None:
            self.report["tensors_read_back"] = check(self.trainer.model, folder, writes=writes)

        self._everywhere(compare)
        self.report["seconds_after"] = round(time.perf_counter() - began, 2)

    def _check_weights(self) -> None:
        lora = self._plan.mode == "lora"
        self.report["trained_tensors"] = proof_weights.check_trainable(
            self.trainer.model,
            self._settings.lora_target_modules if lora else None,
            magnitudes=lora and bool(getattr(self._settings, "use_dora", False)),
        )
        if frozen := beside_text(self.trainer.model):
            self.report["beside_text"] = frozen
        if not self.trainer.is_deepspeed_enabled:  # which flattens weights into buffers of its own
            proof_weights.check_optimiser(self.trainer.model, self.trainer.optimizer)

    def _check_batches(self) -> None:
        config = self.trainer.model.config.get_text_config()
        precision = self._precision()
        allowed = proof_forward.tolerance(precision, config.num_hidden_layers)
        with proof_forward.short_windows(self.trainer.model):
            found = proof_forward.check_batches(
                self._logits,
                self.trainer.data_collator,
                proof_forward.probe_samples(self.trainer.train_dataset),
                packed=self._packed,
                vocabulary=config.vocab_size,
                allowed=allowed,
                # Exchanged neighbours change none of a sample's own operations, except where int8 looks at the batch.
                leak_allowed=allowed if precision == "int8" else 4 * proof_forward.ROUNDOFF[precision],
            )
        self.report |= {name: float(f"{value:.3g}") for name, value in found.items()}
        self.report["batch_tolerance"] = float(f"{allowed:.3g}")

    def _check_shards(self) -> None:
        block = proof_forward.first_block(self.trainer.model)
        if block is None or not is_sharded(block[1]):
            return
        sample = proof_forward.probe_samples(self.trainer.train_dataset)[:1]
        batch = {name: value for name, value in self.trainer.data_collator(sample).items() if name != "labels"}
        allowed = proof_forward.tolerance(self._precision(), 1)
        found = proof_forward.check_shards(lambda: self._logits(batch), block[1], block[0], allowed=allowed)
        self.report["shard_distance"] = float(f"{found:.3g}")
        self.report["shard_tolerance"] = float(f"{allowed:.3g}")

    def _check_loss(self) -> None:
        precision = self._precision()
        samples = proof_forward.probe_samples(self.trainer.train_dataset)
        allowed = 4 * proof_forward.ROUNDOFF[precision]  # the same hidden states, through the head alone
        self.report |= proof_loss.check_loss(self.trainer, self._logits, samples, allowed=max(allowed, 1e-5))

    def _check_moved(self) -> None:
        if self._moving is None or not any(agree.from_all(self._moves)):
            return
        moved = any(agree.from_all(self._moving.moved(self.trainer.model)))
        if not moved and not self.trainer.args.load_best_model_at_end:
            raise TrainingError(f"no trained weight changed in {self._moves} steps: nothing was learnt")
        self._check_layers()

    def _check_layers(self) -> None:
        if self._moving is None:
            return
        found = agree.from_all((self._moving.zero, self._moving.idle(self.trainer.model)))
        layer = proof_weights.idle_layer([zero for zero, _ in found], [idle for _, idle in found])
        if layer is not None:
            raise TrainingError(
                f"the adapter of {layer} is as it was after {self._steps} steps, while others learnt: the layer takes "
                "no part in the loss: name those that do with --lora_target_modules"
            )

    def _logits(self, batch: dict[str, Any]) -> torch.Tensor:
        model = self.trainer.deepspeed if self.trainer.is_deepspeed_enabled else self.trainer.model
        logits: torch.Tensor = model(**self.trainer._prepare_inputs(batch)).logits
        return logits

    def _precision(self) -> str:
        if self._settings.load_8bit:
            return "int8"
        if self._plan.precision == "fp32" and self._plan.use_gpu and torch.backends.cuda.matmul.allow_tf32:
            return "tf32"
        return self._plan.precision

    def _everywhere(self, check: Callable[[], None]) -> None:
        """Run a check, and raise the first worker's error on every worker: none is left waiting for another."""
        error: TrainingError | None = None
        try:
            check()
        except TrainingError as caught:
            error = caught
        if (first := agree.first_error(error)) is not None:
            raise first


def _uncompiled() -> Any:
    """Keep torch.compile from compiling for the proofs' few short batches."""
    return torch.compiler.set_stance("force_eager")
