"""transformers' Trainer with our order of samples, our loss, and an exact validation loss. Imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from alpaca_ray.train.collate import Batch, token_count
from alpaca_ray.train.encode import IGNORE_INDEX, Sample
from alpaca_ray.train.encoded import lengths_of
from alpaca_ray.train.evaluating import evaluating
from alpaca_ray.train.loss import head_of, loss_in_head
from alpaca_ray.train.noise import EmbeddingNoise
from alpaca_ray.train.order import Batches
from alpaca_ray.train.survival import SurvivingTrainer
from alpaca_ray.train.wrapping import correct_accelerator


class AlpacaTrainer(SurvivingTrainer):
    """Trains on samples in an order that does not depend on the number of workers.

    The loss of a step is the sum over the learnt tokens of all its samples, on all workers, divided by their number, so
    neither the split into micro-batches nor packing changes it.
    """

    # The loss below is already divided by the tokens of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        samples: Sequence[Sample],
        heldout: Sequence[Sample],
        collate: Callable[[Sequence[Sample]], Batch],
        tokenizer: Any,
        callbacks: list[Any],
        group_by_length: bool = False,
        step_samples: int | None = None,
    ) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._base = base
        self._trims_head = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.fuses_loss = True  # where the head allows; the proofs take it back where the logits are not the head's
        self._spread = len(set((getattr(base, "hf_device_map", None) or {}).values())) > 1
        self._group_by_length = group_by_length
        self._step_samples = step_samples or (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self.tokens_seen = 0  # real tokens that this worker trained on since the start of this process
        self.slots_seen = 0  # the same with padding
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=samples,
            eval_dataset=heldout if len(heldout) else None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.neftune_noise_alpha = None  # its own hook takes a packed row for one sample
        self._noise = EmbeddingNoise(base, args.neftune_noise_alpha) if args.neftune_noise_alpha else None
        if self._noise:
            self.add_callback(self._noise)
        # Both make Trainer count the learnt tokens of a step over all workers and pass the number to compute_loss.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

    def create_accelerator_and_postprocess(self) -> None:
        """Create accelerate's state, and correct what it makes of the workers."""
        super().create_accelerator_and_postprocess()
        correct_accelerator(self)

    def get_train_dataloader(self) -> DataLoader:
        """Return this worker's micro-batches of training samples."""
        lengths = lengths_of(self.train_dataset) if self._group_by_length else None
        return self._loader(
            self.train_dataset,
            Batches(
                len(self.train_dataset),
                micro_batch=self.args.per_device_train_batch_size,
                step=self._step_samples,
                workers=self.args.world_size,
                rank=self.args.process_index,
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                lengths=lengths,
            ),
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return this worker's share of the held-out samples, each of them once over all workers."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(
            dataset,
            Batches(
                len(dataset),
                micro_batch=self.args.per_device_eval_batch_size,
                workers=self.args.world_size,
                rank=self.args.process_index,
                shuffle=False,
            ),
        )

    def _loader(self, dataset: Any, batches: Batches) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # its draws must not move the random state that dropout goes on from
        )

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the summed loss of a micro-batch over ``num_items_in_batch``, the learnt tokens of the whole step."""
        self.tokens_seen += token_count(inputs)
        self.slots_seen += int(inputs["input_ids"].numel())
        total, count, outputs = self._token_loss(model, inputs)
        divisor = count if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.clamp(torch.as_tensor(divisor, device=total.device), min=1)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the exchange of gradients takes the mean over workers
        return (loss, outputs) if return_outputs else loss

    def loss_head(self) -> torch.nn.Linear | None:
        """Return the head in which the loss is computed, or None where the loss is taken of the model's logits."""
        return head_of(self._base) if self._trims_head and self.fuses_loss and not self._spread else None

    def _token_loss(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return the summed loss, the number of learnt tokens, and the model's outputs.

        The language-model head is computed only at positions whose next token is learnt in some row, and together
        with the loss (``outputs.logits`` is the loss then) where it is a plain linear layer.
        """
        inputs = dict(inputs)
        if self._noise:
            self._noise.see(inputs)
        targets = inputs.pop("labels")[:, 1:]
        learnt = targets != IGNORE_INDEX
        keep = learnt.any(dim=0).nonzero().flatten()
        if keep.numel() == 0:  # every worker must go through the model; a single token has nothing that follows
            keep = torch.zeros(1, dtype=torch.long, device=targets.device)
            targets = torch.full((len(targets), 1), IGNORE_INDEX, device=targets.device)
        else:
            targets = targets[:, keep]
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        head = self.loss_head()
        if head is not None:
            with loss_in_head(self._base, head, targets, smoothing):
                outputs = model(**inputs, logits_to_keep=keep)
            return outputs.logits, learnt.sum(), outputs
        if self._trims_head and self._spread:  # positions on the first GPU are no index of states on the last one
            first = int(keep[0])
            outputs = model(**inputs, logits_to_keep=inputs["input_ids"].shape[1] - first)
            logits = outputs.logits[:, (keep - first).to(outputs.logits.device)]
        elif self._trims_head:
            outputs = model(**inputs, logits_to_keep=keep)
            logits = outputs.logits
        else:
            outputs = model(**inputs)
            logits = outputs.logits[:, keep]
        total = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten().to(logits.device),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total, learnt.sum(), outputs

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the mean loss over all learnt tokens of the held-out samples, exact on any number of workers.

        Trainer's own averages the means of batches, which depends on how samples fall into batches.
        """
        model = self.deepspeed if self.is_deepspeed_enabled else self.model
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with evaluating(model), torch.no_grad():
            for batch in dataloader:
                total, count, _ = self._token_loss(model, self._prepare_inputs(batch))
                sums += torch.stack([total.double(), count.double()])
        sums = self.accelerator.reduce(sums, reduction="sum")
        loss = (sums[0] / sums[1].clamp(min=1)).item()
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_loss": loss},
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )
