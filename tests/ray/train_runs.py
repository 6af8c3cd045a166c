"""Training runs under Ray that differ in their flags alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.progress import read_metrics


class Runs:
    """Runs from the same model, records and, for LoRA, adapter; each flag set once."""

    def __init__(self, base: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        from alpaca_ray.train.adapter import add_adapter

        self.base, self.folder = base, folder
        records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:24]
        self.data = folder / "data.json"
        self.data.write_text(json.dumps([{k: r[k] for k in ("instruction", "input", "output")} for r in records]))
        torch.manual_seed(7)
        model = add_adapter(self.settings("start", "--lora_r", "2"), AutoModelForCausalLM.from_pretrained(base))
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.02)
        model.save_pretrained(folder / "adapter")

    def settings(self, name: str, *flags: str) -> TrainSettings:
        common = (
            f"--model {self.base} --data_path {self.data} --output_dir {self.folder / name} --val_set_size 4 --no_bf16 "
            "--batch_size 4 --eval_strategy no --save_strategy no --logging_steps 1 --learning_rate 1e-2 --threads 1 "
            "--warmup_ratio 0"
        )
        return parse_settings(TrainSettings, [*common.split(), *flags], description="test")

    def run(self, name: str, *flags: str) -> dict[str, Any]:
        from alpaca_ray.train.runner import train

        content = train(self.settings(name, *flags))
        assert content is not None
        return content

    def full(self, name: str, *flags: str) -> dict[str, Any]:
        return self.run(name, "--full", "--max_steps", "10", *flags)

    def lora(self, name: str, *flags: str) -> dict[str, Any]:
        start = [
            "--lora_r",
            "2",
            "--lora_dropout",
            "0",
            "--resume_from_checkpoint",
            str(self.folder / "adapter"),
            "--max_steps",
            "2",
        ]
        return self.run(name, *start, "--num_workers", "2", *flags)

    def losses(self, name: str) -> list[float]:
        return [row["loss"] for row in read_metrics(self.folder / name) if "loss" in row]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(next((self.folder / name).glob("*model.safetensors")))

    def validation_loss(self, name: str, **options: Any) -> float:
        """The loss on the held-out records of the base as it was, with the adapter that a run saved."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32, **options)
        model = PeftModel.from_pretrained(base, self.folder / name)
        # bitsandbytes' CPU kernels for inference want wider layers than these.
        return self.loss_of(model.train() if options else model.eval(), name)

    def loss_of(self, model: Any, name: str) -> float:
        """The loss of a model on the records that a run held out."""
        from transformers import AutoTokenizer

        from alpaca_ray.prompts import STANFORD
        from alpaca_ray.train.encode import encode

        held = set(json.loads((self.folder / name / "heldout_ids.json").read_text()))
        records = [record for record in read_records(str(self.data)) if record["id"] in held]
        total = count = 0.0
        for sample in encode(records, AutoTokenizer.from_pretrained(self.base), STANFORD, max_length=512):
            labels = torch.tensor([sample["labels"]])
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([sample["input_ids"]]), labels=labels).loss
            learnt = int((labels[:, 1:] != -100).sum())
            total, count = total + loss.item() * learnt, count + learnt
        return total / count
