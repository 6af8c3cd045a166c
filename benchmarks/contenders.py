"""The trainers that benchmarks/train.py compares: same model, adapter, records, precision and optimiser."""

from __future__ import annotations

import atexit
import importlib.util
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from alpaca_ray.prompts import load_template
from alpaca_ray.records import Record, read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import arguments, speed
from alpaca_ray.train.collate import collator, packed, token_count
from alpaca_ray.train.encode import IGNORE_INDEX, Sample, encode
from alpaca_ray.train.model import build_model, parameter_counts
from alpaca_ray.train.order import epoch_order
from alpaca_ray.train.plan import Plan, make_plan
from alpaca_ray.train.tokenizer import build_tokenizer, padding
from alpaca_ray.train.trainer import AlpacaTrainer

HAS_TRL = importlib.util.find_spec("trl") is not None


@dataclass
class Bench:
    """What all contenders share."""

    settings: TrainSettings
    plan: Plan
    tokenizer: Any
    samples: list[Sample]  # in the order of the steps
    steps: int  # of one turn, and one more to warm up
    parameters: int = 0  # of the model, once one was made

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Return keyword arguments of TrainingArguments."""
        values = arguments.translate(self.settings, self.plan, scratch(), has_validation=False)
        fixed = {"max_steps": self.steps + 1, "save_strategy": "no", "logging_steps": 10_000, "report_to": "none"}
        return {**values, **fixed, **changes}

    def model(self) -> Any:
        """Return the base model with its adapter, as PEFT makes it."""
        torch.manual_seed(self.settings.seed)
        source = self.settings.model_name
        model = build_model(self.settings, self.plan, self.tokenizer, source)
        self.parameters = parameter_counts(model)[0]
        return model


def prepare(flags: Sequence[str], data_path: str | None, *, records: int, steps: int) -> Bench:
    """Parse settings, read or generate records, and encode as many as the steps need."""
    settings = parse_settings(TrainSettings, list(flags), description="")
    plan = make_plan(settings, has_gpus=torch.cuda.is_available())
    tokenizer = build_tokenizer(settings, settings.model_name)
    found = read_records(data_path) if data_path else generate(records)
    random.Random(0).shuffle(found)
    samples = encode(
        found[:records], tokenizer, load_template(settings.prompt_template), max_length=settings.model_max_length
    )
    needed = plan.step_samples * (steps + 1)
    while len(samples) < needed:
        samples += samples[: needed - len(samples)]
    samples = samples[:needed]
    order = epoch_order(len(samples), epoch=0, seed=settings.seed)
    return Bench(settings, plan, tokenizer, [samples[index] for index in order], steps)


def generate(count: int) -> list[Record]:
    """Return records with the shape of Alpaca's: a short instruction, sometimes an input, log-normal answers."""
    words = sorted({word for record in read_records("seeds") for word in record["output"].split()})
    source = random.Random(0)

    def text(length: float) -> str:
        return " ".join(source.choices(words, k=max(1, int(length))))

    return [
        {
            "id": str(number),
            "instruction": text(source.uniform(6, 18)),
            "input": text(source.lognormvariate(2.3, 0.9)) if source.random() < 0.4 else "",
            "output": text(min(source.lognormvariate(3.3, 1.0), 300)),
        }
        for number in range(count)
    ]


class Clock(TrainerCallback):
    """Notes the time at each step's end; the first one's warms up."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start anew."""
        self.ends = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note wall-clock and processor time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))


class RayReport(TrainerCallback):
    """Reports steps to Ray Train as this project's worker reports those that it logs."""

    def __init__(self) -> None:
        from alpaca_ray.train.reporting import RareReports

        self._report = RareReports()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report, or leave it out."""
        self._report({"step": state.global_step})


def scratch() -> str:
    """Return a new temporary folder, removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="alpaca_bench_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@dataclass
class Contender:
    """A trainer whose steps are timed."""

    name: str
    trainer: Any
    clock: Clock
    batches: list[tuple[int, int]]  # real tokens and slots of each micro-batch since the turn began
    accumulation: int

    def turn(self) -> dict[str, float]:
        """Train the steps of one turn: real tokens, slots, wall-clock and processor seconds, without the first step."""
        self.batches.clear()
        self.trainer.train()
        ends = self.clock.ends
        counted = self.batches[self.accumulation :]
        return {
            "tokens": sum(batch[0] for batch in counted),
            "slots": sum(batch[1] for batch in counted),
            "seconds": ends[-1][0] - ends[0][0],
            "cpu_seconds": ends[-1][1] - ends[0][1],
        }


def _contender(name: str, trainer: Any, clock: Clock) -> Contender:
    batches: list[tuple[int, int]] = []
    inner = trainer.training_step

    def counting(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        batches.append((token_count(inputs), int(inputs["input_ids"].numel())))
        return inner(model, inputs, *rest, **options)

    trainer.training_step = counting
    return Contender(name, trainer, clock, batches, trainer.args.gradient_accumulation_steps)


def ours(bench: Bench) -> Contender:
    """This project's trainer, put together as its worker does."""
    model, clock = bench.model(), Clock()
    packing = speed.prepare(model, bench.settings, bench.plan)
    pad_id, _ = padding(bench.settings, bench.tokenizer)
    trainer = AlpacaTrainer(
        model=model,
        args=TrainingArguments(**bench.arguments()),
        samples=bench.samples,
        heldout=[],
        collate=collator(packing, pad_id=pad_id),
        tokenizer=bench.tokenizer,
        callbacks=[clock],
    )
    return _contender("ours", trainer, clock)


class _InOrder(Trainer):
    """Takes the samples as they lie, so that its steps hold the same ones as ours."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def stanford(bench: Bench) -> Contender:
    """transformers' Trainer and a batch padded to its longest sample, as Stanford's collator pads it."""
    clock = Clock()
    trainer = _InOrder(
        model=bench.model(),
        args=TrainingArguments(**bench.arguments()),
        train_dataset=bench.samples,
        data_collator=stanford_collator(padding(bench.settings, bench.tokenizer)[0]),
        callbacks=[clock],
    )
    return _contender("stanford", trainer, clock)


def stanford_collator(pad_id: int) -> Callable[[Sequence[Sample]], dict[str, torch.Tensor]]:
    """Return what pads ids and labels to the longest sample, and masks by the padding id."""

    def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(sample[name]) for sample in samples],  # type: ignore[literal-required]
                batch_first=True,
                padding_value=filler,
            )
            for name, filler in (("input_ids", pad_id), ("labels", IGNORE_INDEX))
        )
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": (torch.arange(ids.shape[1])[None] < lengths[:, None]).long(),
        }

    return collate


def trl(bench: Bench, *, rows: int, length: int, liger: bool = False) -> Contender:
    """TRL's SFTTrainer with best-fit-decreasing packing into rows of ``length`` tokens, ``rows`` at a time."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = Clock()
    dataset = Dataset.from_list([dict(sample) for sample in bench.samples * 2])  # packing leaves fewer rows
    values = bench.arguments(per_device_train_batch_size=rows, gradient_accumulation_steps=1)
    values |= {"packing": True, "packing_strategy": "bfd", "max_length": length, "use_liger_kernel": liger}
    values |= {"gradient_checkpointing": False, "remove_unused_columns": True, "num_train_epochs": 100}
    trainer = SFTTrainer(
        model=bench.model(),
        args=SFTConfig(**values),
        train_dataset=dataset,
        processing_class=bench.tokenizer,
        callbacks=[clock],
    )
    return _contender("trl", trainer, clock)


def padding_factor(bench: Bench) -> float:
    """Return slots of the padded batches over their real tokens."""
    size = bench.plan.micro_batch
    batches = [bench.samples[start : start + size] for start in range(0, len(bench.samples), size)]
    slots = sum(len(batch) * max(len(sample["input_ids"]) for sample in batch) for batch in batches)
    return slots / sum(token_count(packed(batch)) for batch in batches)
