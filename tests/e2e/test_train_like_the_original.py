"""Ten steps of full fine-tuning of the embedded model: ours, packed, against Stanford's loop on the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import Record, read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import arguments, speed
from alpaca_ray.train.collate import collator
from alpaca_ray.train.encode import IGNORE_INDEX, encode
from alpaca_ray.train.model import build_model
from alpaca_ray.train.order import epoch_order
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.tokenizer import build_tokenizer, padding
from alpaca_ray.train.trainer import AlpacaTrainer

STEPS, MICRO, ACCUMULATION = 10, 2, 2
FLAGS = ["--use_gpu", "False", "--per_device_train_batch_size", str(MICRO), "--logging_steps", "1"]
FLAGS += ["--gradient_accumulation_steps", str(ACCUMULATION), "--max_steps", str(STEPS), "--save_strategy", "no"]
KINDS = {
    "lora": ["--model", "embedded", "--bf16", "False", "--lora_dropout", "0", "--learning_rate", "1e-3"],
    "full": ["--model_name_or_path", "embedded", "--packing", "True", "--learning_rate", "1e-5"],
}


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.found.append(float(logs["loss"]))


class InOrder(Trainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def original_sample(record: Record, tokenizer: Any, limit: int) -> dict[str, torch.Tensor]:
    """One text of prompt, answer and end token; as many labels masked as the prompt alone has tokens."""
    source = STANFORD.format(record)
    ids = tokenizer(source + record["output"] + tokenizer.eos_token, max_length=limit, truncation=True)["input_ids"]
    labels = torch.tensor(ids)
    labels[: len(tokenizer(source, max_length=limit, truncation=True)["input_ids"])] = IGNORE_INDEX
    return {"input_ids": torch.tensor(ids), "labels": labels}


def original_batch(samples: Sequence[Any], pad_id: int) -> dict[str, torch.Tensor]:
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=filler)
        for name, filler in (("input_ids", pad_id), ("labels", IGNORE_INDEX))
    )
    return {"input_ids": ids, "labels": labels, "attention_mask": ids.ne(pad_id).long()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_each_steps_loss_is_the_original_loops(kind: str, tmp_path: Path) -> None:
    settings = parse_settings(TrainSettings, [*KINDS[kind], *FLAGS, "--output_dir", str(tmp_path)], description="test")
    plan = make_plan(settings, has_gpus=False)
    assert (plan.mode, plan.precision) == (kind, "fp32")
    tokenizer = build_tokenizer(settings, "embedded")
    pad_id, _ = padding(settings, tokenizer)
    records = sorted(read_records("seeds"), key=lambda record: len(STANFORD.format(record)) + len(record["output"]))
    records = records[: STEPS * MICRO * ACCUMULATION]
    order = epoch_order(len(records), epoch=0, seed=settings.seed)
    values = arguments.translate(settings, plan, str(tmp_path), has_validation=False)

    def model() -> Any:
        torch.manual_seed(settings.seed)
        return build_model(settings, plan, tokenizer, "embedded")

    theirs = Losses()
    InOrder(
        model=model(),
        args=TrainingArguments(**values),
        train_dataset=[original_sample(records[index], tokenizer, settings.model_max_length) for index in order],
        data_collator=lambda samples: original_batch(samples, pad_id),
        callbacks=[theirs],
    ).train()

    ours = Losses()
    trained = model()
    packing = speed.prepare(trained, settings, plan)
    assert packing == "borders"
    samples = encode(records, tokenizer, STANFORD, max_length=settings.model_max_length)
    trainer = AlpacaTrainer(
        model=trained,
        args=TrainingArguments(**values),
        samples=samples,
        heldout=[samples[index] for index in order[: MICRO * ACCUMULATION]],
        collate=collator(packing, pad_id=pad_id),
        tokenizer=tokenizer,
        callbacks=[ours],
    )
    trainer.train()

    assert len(ours.found) == len(theirs.found) == STEPS
    worst = max(abs(mine - other) for mine, other in zip(ours.found, theirs.found, strict=True))
    assert worst < 1e-3, list(zip(ours.found, theirs.found, strict=True))
    assert trainer.evaluate()["eval_loss"] < ours.found[0] - 0.02  # the first step's samples are learnt by now
