"""transformers' Trainer with our order of samples, our loss, and an exact validation loss. Imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from alpaca_ray.train.collate import Batch, token_count
from alpaca_ray.train.encode import IGNORE_INDEX, Sample
from alpaca_ray.train.order import Batches


class AlpacaTrainer(Trainer):
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
    ) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._trims_head = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._group_by_length = group_by_length
        self.tokens_seen = 0  # real tokens that this worker trained on since the start of this process
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=list(samples),
            eval_dataset=list(heldout) or None,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # Both make Trainer count the learnt tokens of a step over all workers and pass the number to compute_loss.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True

    def create_accelerator_and_postprocess(self) -> None:
        """Create accelerate's state, and correct what it makes of CPU workers.

        accelerate takes an FSDP plugin on GPUs only and would silently fall back to DDP, while FSDP2 itself runs over
        gloo; and it would wrap the model of a single worker in DDP, which exchanges gradients with nobody.
        """
        super().create_accelerator_and_postprocess()
        if not self.args.use_cpu:
            return
        if self.args.fsdp_plugin_args is not None:
            plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            if self.args.mixed_precision != "no":
                plugin.set_mixed_precision(self.args.mixed_precision)
            self.accelerator.state.fsdp_plugin = plugin
            self.is_fsdp_enabled = True
            self._set_distributed_type(DistributedType.FSDP)
        elif self.accelerator.num_processes == 1:
            self._set_distributed_type(DistributedType.NO)

    def _set_distributed_type(self, kind: DistributedType) -> None:
        self.accelerator.state.distributed_type = kind
        # Every later AcceleratorState() copies the value of the underlying PartialState over its own.
        PartialState._shared_state["distributed_type"] = kind

    def get_train_dataloader(self) -> DataLoader:
        """Return this worker's micro-batches of training samples."""
        lengths = [len(sample["input_ids"]) for sample in self.train_dataset] if self._group_by_length else None
        return self._loader(
            self.train_dataset,
            Batches(
                len(self.train_dataset),
                micro_batch=self.args.per_device_train_batch_size,
                accumulation=self.args.gradient_accumulation_steps,
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
        total, count, outputs = self._token_loss(model, inputs)
        divisor = count if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.clamp(torch.as_tensor(divisor, device=total.device), min=1)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the exchange of gradients takes the mean over workers
        return (loss, outputs) if return_outputs else loss

    def _token_loss(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return the summed loss, the number of learnt tokens, and the model's outputs.

        The language-model head is computed only at positions whose next token is learnt in some row.
        """
        inputs = dict(inputs)
        targets = inputs.pop("labels")[:, 1:]
        learnt = targets != IGNORE_INDEX
        keep = learnt.any(dim=0).nonzero().flatten()
        if keep.numel() == 0:
            keep = torch.zeros(1, dtype=torch.long, device=targets.device)
        if self._trims_head:
            outputs = model(**inputs, logits_to_keep=keep)
            logits = outputs.logits
        else:
            outputs = model(**inputs)
            logits = outputs.logits[:, keep]
        total = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            targets[:, keep].flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
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
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in dataloader:
                total, count, _ = self._token_loss(model, self._prepare_inputs(batch))
                sums += torch.stack([total.double(), count.double()])
        sums = self.accelerator.reduce(sums, reduction="sum")
        model.train(was_training)
        loss = (sums[0] / sums[1].clamp(min=1)).item()
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_loss": loss},
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]
        )
