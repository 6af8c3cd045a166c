"""A training run in the test's own process: the pieces a worker is made of, without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings


@dataclass
class Trained:
    """What a run left: its trainer, the losses of its steps, and the weights before and after, by name."""

    trainer: Any
    losses: list[float]
    before: dict[str, Any]
    after: dict[str, Any]
    trainable: set[str]

    @property
    def changed(self) -> set[str]:
        """Names of the weights that are not what they were."""
        import torch

        return {name for name, weight in self.after.items() if not torch.equal(weight, self.before[name])}


def train_here(base: Path, folder: Path, *flags: str, records: int = 8, callbacks: tuple[Any, ...] = ()) -> Trained:
    """Train on the shortest of the shipped records: two steps of four in float32 unless the flags say otherwise."""
    import torch
    from transformers import TrainingArguments

    from alpaca_ray.train import speed
    from alpaca_ray.train.arguments import translate
    from alpaca_ray.train.collate import collator
    from alpaca_ray.train.encode import encode
    from alpaca_ray.train.model import build_model
    from alpaca_ray.train.plan import make_plan
    from alpaca_ray.train.tokenizer import build_tokenizer, padding
    from alpaca_ray.train.trainer import AlpacaTrainer

    given = ["--model", str(base), "--no_bf16", "--learning_rate", "1e-2", "--max_steps", "2", "--batch_size", "4"]
    given += ["--warmup_ratio", "0", "--logging_steps", "1", "--save_strategy", "no", "--eval_strategy", "no"]
    given += ["--output_dir", str(folder)]
    settings = parse_settings(TrainSettings, [*given, *flags], description="test")
    plan = make_plan(settings, has_gpus=False)
    arguments = TrainingArguments(**translate(settings, plan, str(folder), has_validation=False))
    tokenizer = build_tokenizer(settings, str(base))
    torch.manual_seed(settings.seed)
    model = build_model(settings, plan, tokenizer, str(base))
    packing = speed.prepare(model, settings, plan)
    samples = encode(
        sorted(read_records("seeds"), key=lambda record: len(str(record)))[:records],
        tokenizer,
        STANFORD,
        max_length=settings.model_max_length,
    )
    pad_id, _ = padding(settings, tokenizer)
    trainer = AlpacaTrainer(
        model=model,
        args=arguments,
        samples=samples,
        heldout=[],
        collate=collator(packing, pad_id=pad_id, side="right"),
        tokenizer=tokenizer,
        callbacks=list(callbacks),
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    return Trained(
        trainer=trainer,
        losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
        before=before,
        after=dict(model.named_parameters()),
        trainable={name for name, weight in model.named_parameters() if weight.requires_grad},
    )
