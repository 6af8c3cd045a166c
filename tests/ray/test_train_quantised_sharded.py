"""A 4-bit base in shards against the same base whole on every worker: stored bits, gathered bits, losses, gradients."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_modes import Runs
from transformers import TrainerCallback

from alpaca_ray.records import read_records

pytestmark = pytest.mark.ray

STEPS = 3


class Watch(TrainerCallback):
    """What a run holds and computes, whole, on every worker."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.bits: dict[str, torch.Tensor] = {}  # packed weights, gathered from what each worker stores
        self.computed_with: dict[str, torch.Tensor] = {}  # the same as the layer's own forward pass gets them
        self.values: dict[str, torch.Tensor] = {}  # what the stored bits mean
        self.stored: dict[str, int] = {}  # bytes that this worker keeps of each
        self.nans = 0  # packed values that read as no number in the type they are stored in
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from bitsandbytes.functional import dequantize_4bit

        for name, layer in self.layers():
            weight = whole(layer.weight)
            self.bits[name] = as_bytes(weight)
            self.nans += int(weight.isnan().sum()) if weight.is_floating_point() else 0
            self.values[name] = dequantize_4bit(weight, layer.quant_state)
            own = layer.weight.to_local() if hasattr(layer.weight, "to_local") else layer.weight
            self.stored[name] = own.numel() * own.element_size()
            layer.register_forward_pre_hook(lambda part, _, name=name: self.note(part, name))

    def note(self, layer: Any, name: str) -> None:
        self.computed_with[name] = as_bytes(layer.weight.detach())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        named = self.trainer.model.named_parameters()
        self.gradients.append({name: whole(part.grad) for name, part in named if part.requires_grad})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def layers(self) -> list[tuple[str, Any]]:
        from bitsandbytes.nn import Linear4bit

        return [(name, part) for name, part in self.trainer.model.named_modules() if isinstance(part, Linear4bit)]


def whole(tensor: Any) -> torch.Tensor:
    gathered: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().clone().contiguous()


def as_bytes(weight: torch.Tensor) -> torch.Tensor:
    return weight.as_subclass(torch.Tensor).contiguous().view(torch.uint8).flatten().clone()


def train_both_ways(rank: int, base: Path, folder: Path, precisions: tuple[str, ...]) -> None:
    """Train as one of two workers, with the base whole and in shards; the first worker saves what it saw."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    seen = {}
    for precision in precisions:
        for way, flags in {"whole": ["--no_fused_lora"], "sharded": ["--fsdp", "full_shard"]}.items():
            flags = [*flags, "--bf16" if precision == "bf16" else "--no_bf16"]
            watch = train_one_way(base, folder / f"{precision}-{way}", flags)
            seen[precision, way] = {**vars(watch), "trainer": type(watch.trainer.model_wrapped).__name__}
    if rank == 0:
        torch.save(seen, folder / "seen.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_one_way(base: Path, output: Path, flags: list[str]) -> Watch:
    from accelerate.state import AcceleratorState
    from transformers import TrainingArguments

    from alpaca_ray.prompts import STANFORD
    from alpaca_ray.settings.cli import parse_settings
    from alpaca_ray.settings.train import TrainSettings
    from alpaca_ray.train import speed
    from alpaca_ray.train.arguments import translate
    from alpaca_ray.train.collate import collator
    from alpaca_ray.train.encode import encode
    from alpaca_ray.train.model import build_model
    from alpaca_ray.train.plan import make_plan
    from alpaca_ray.train.tokenizer import build_tokenizer, padding
    from alpaca_ray.train.trainer import AlpacaTrainer

    AcceleratorState._reset_state(reset_partial_state=True)
    text = (
        f"--model {base} --output_dir {output} --num_workers 2 --load_4bit --lora_r 2 --lora_dropout 0 --batch_size 4 "
        f"--max_steps {STEPS} --learning_rate 1e-2 --warmup_ratio 0 --logging_steps 1 --save_strategy no "
        "--eval_strategy no --per_device_train_batch_size 1"  # two micro-batches a worker
    )
    settings = parse_settings(TrainSettings, [*text.split(), *flags], description="test")
    plan = make_plan(settings, has_gpus=False)
    arguments = TrainingArguments(**translate(settings, plan, str(output), has_validation=False))
    tokenizer = build_tokenizer(settings, str(base))
    torch.manual_seed(5)
    model = build_model(settings, plan, tokenizer, str(base))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradients of A
            torch.nn.init.normal_(weight, std=0.05)
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:12]
    watch = Watch()
    watch.trainer = AlpacaTrainer(
        model=model,
        args=arguments,
        samples=encode(records, tokenizer, STANFORD, max_length=settings.model_max_length),
        heldout=[],
        collate=collator(speed.prepare(model, settings, plan), pad_id=padding(settings, tokenizer)[0]),
        tokenizer=tokenizer,
        callbacks=[watch],
    )
    watch.trainer.train()
    return watch


def make_llama(like: Path, folder: Path, **shape: int) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(like)
    torch.manual_seed(3)
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024, **shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def compare(base: Path, folder: Path, *precisions: str) -> dict[Any, dict[str, Any]]:
    torch.multiprocessing.spawn(train_both_ways, args=(base, folder, precisions), nprocs=2)
    seen: dict[Any, dict[str, Any]] = torch.load(folder / "seen.pt", weights_only=False)
    return seen


def assert_same(seen: dict[Any, dict[str, Any]], precision: str, *, loss: float, gradient: float) -> None:
    ours, theirs = seen[precision, "sharded"], seen[precision, "whole"]
    assert (ours["trainer"], theirs["trainer"]) == ("FSDPPeftModelForCausalLM", "DistributedDataParallel")
    assert ours["bits"].keys() == theirs["bits"].keys() == ours["computed_with"].keys()
    for name, bits in theirs["bits"].items():
        assert torch.equal(ours["bits"][name], bits), name
        assert torch.equal(ours["computed_with"][name], bits), name
        assert torch.equal(ours["values"][name], theirs["values"][name]), name
    assert ours["nans"], "no packed value reads as no number: copying them through float types was not tested"
    halves = sum(ours["stored"].values()) / sum(theirs["stored"].values())
    assert halves == pytest.approx(0.5, abs=0.02)  # the first worker has the odd values
    assert len(theirs["losses"]) == len(theirs["gradients"]) == STEPS
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=loss)
    for step, (mine, their) in enumerate(zip(ours["gradients"], theirs["gradients"], strict=True)):
        assert mine.keys() == {name.removeprefix("module.") for name in their}
        for name, expected in their.items():
            assert expected.norm() > 0
            apart = (mine[name.removeprefix("module.")] - expected).norm() / expected.norm()
            assert apart < gradient, f"step {step + 1}, {name}: {apart:.2g}"


def test_a_sharded_4_bit_base_is_the_whole_one_to_the_last_bit(tiny_llama: Path, tmp_path: Path) -> None:
    """Some layers have an odd number of stored values, and packed bytes that no block of 64 divides."""
    odd = {"hidden_size": 36, "intermediate_size": 58, "num_attention_heads": 6, "num_key_value_heads": 3}
    base = make_llama(tiny_llama, tmp_path / "base", num_hidden_layers=3, **odd)
    seen = compare(base, tmp_path, "fp32", "bf16")
    sizes = {len(bits) for bits in seen["fp32", "whole"]["bits"].values()}
    assert any(size % 8 for size in sizes)
    assert any(size % 8 == 0 for size in sizes)
    assert_same(seen, "fp32", loss=1e-6, gradient=1e-5)
    assert_same(seen, "bf16", loss=3e-3, gradient=0.6)  # rounding to 8 bits, and three steps of Adam on it


@pytest.mark.slow
def test_a_larger_4_bit_base_in_shards_takes_the_same_steps(tiny_llama: Path, tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4}
    seen = compare(make_llama(tiny_llama, tmp_path / "base", num_hidden_layers=4, **wide), tmp_path, "fp32")
    assert_same(seen, "fp32", loss=1e-5, gradient=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_runs_with_a_4_bit_base_have_the_same_losses_whole_and_in_shards(tiny_llama: Path, tmp_path: Path) -> None:
    runs = Runs(tiny_llama, tmp_path)
    for name, flags in {
        "one": ["--num_workers", "1"],
        "whole": [],
        "sharded": ["--fsdp", "full_shard"],
        "offloaded": ["--fsdp", "full_shard offload"],
    }.items():
        runs.lora(name, "--load_4bit", "--max_steps", "6", *flags)
    expected, saved = runs.losses("one"), runs.weights("one")
    assert len(expected) == 6
    for name in ("whole", "sharded", "offloaded"):
        assert runs.losses(name) == pytest.approx(expected, abs=1e-5), name
        assert json.loads((runs.folder / name / "adapter_config.json").read_text())["r"] == 2
        for key, weight in runs.weights(name).items():
            assert torch.allclose(weight, saved[key], atol=1e-4), (name, key)
