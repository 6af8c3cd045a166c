"""Parameter counts, steps and memory from a configuration alone; held against models that are really there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.dry_run import total_steps
from alpaca_ray.train.estimate import Estimate, estimate
from alpaca_ray.train.largest import Batch, largest_batch
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.room import lacking


def settings_of(*flags: str | Path) -> TrainSettings:
    return parse_settings(TrainSettings, [str(flag) for flag in flags], description="test")


def estimate_of(*flags: str | Path, batch: Batch, gpus: bool = False) -> Estimate:
    settings = settings_of(*flags)
    plan = make_plan(settings, has_gpus=gpus)
    config = json.loads(Path(settings.deepspeed).read_text()) if settings.deepspeed else None
    return estimate(settings, plan, settings.model_name, batch, deepspeed=config)


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 5 M weights: large enough that its activations outweigh everything that is not counted."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    folder = tmp_path_factory.mktemp("middling")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def measured_step(model: Any, batch: Batch, autocast: torch.dtype | None) -> int:
    """Return the bytes that torch's CPU allocator gave out at most in a step, as its profiler saw them."""
    import contextlib

    from torch.profiler import ProfilerActivity, profile

    from alpaca_ray.train import attention
    from alpaca_ray.train.collate import packed
    from alpaca_ray.train.loss import head_of, loss_in_head

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = head_of(base)
    assert head is not None
    attention.install(base)
    row = packed([{"input_ids": [5] * length, "labels": [5] * length} for length in batch.lengths], borders=True)
    del row["labels"]
    targets = torch.zeros(batch.rows, batch.learnt, dtype=torch.long)

    def step() -> None:
        cast = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
        with cast, loss_in_head(base, head, targets, 0.0):
            loss = model(**row, logits_to_keep=torch.arange(batch.learnt)).logits
        loss.backward()
        model.zero_grad()

    model.train()
    step()
    # The masks that it keeps for later steps are part of what the first one takes.
    with attention.own_masks(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("flags", "autocast"),
    [
        ("", torch.bfloat16),
        ("--lora_dropout 0 --no_bf16", None),
        ("--full", torch.bfloat16),
        ("--gradient_checkpointing", torch.bfloat16),
    ],
)
def test_a_simulated_step_takes_what_a_real_one_takes(flags: str, autocast: Any, middling: Path) -> None:
    from alpaca_ray.models import load_model
    from alpaca_ray.train import lora
    from alpaca_ray.train.adapter import add_adapter

    batch = Batch(1, 768, 200, (120, 248, 90, 200, 110))
    settings = settings_of("--model", middling, *flags.split())
    needs = estimate_of("--model", middling, *flags.split(), batch=batch)
    model = load_model(str(middling), dtype=torch.float32 if settings.full or not autocast else autocast)
    model.config.use_cache = False
    if not settings.full:
        if settings.gradient_checkpointing:
            model.enable_input_require_grads()
        model = add_adapter(settings, model)
        lora.fuse(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert needs.parameters == sum(part.numel() for part in model.parameters())
    assert needs.trainable == sum(part.numel() for part in model.parameters() if part.requires_grad)
    held = sum(part.nbytes for part in model.parameters())
    assert needs.weights == pytest.approx(held, rel=0.01)
    assert needs.passes == pytest.approx(measured_step(model, batch, autocast), rel=0.15)


def test_what_each_mode_changes(middling: Path) -> None:
    batch = Batch(1, 128, 40)
    lora = estimate_of("--model", middling, batch=batch)
    nf4 = estimate_of("--model", middling, "--load_4bit", batch=batch)
    int8 = estimate_of("--model", middling, "--load_8bit", batch=batch)
    full = estimate_of("--model", middling, "--full", batch=batch)
    small = estimate_of("--model", middling, "--full", "--optim", "adamw_bnb_8bit", batch=batch)
    assert nf4.weights < int8.weights < full.weights
    assert lora.trainable == nf4.trainable == int8.trainable
    assert (full.optimiser, small.optimiser) == (8 * full.trainable, 2 * full.trainable)
    assert full.checkpoint == 12 * full.trainable
    assert lora.checkpoint == 12 * lora.trainable
    checkpointed = estimate_of("--model", middling, "--gradient_checkpointing", batch=Batch(1, 768, 40))
    assert checkpointed.passes < estimate_of("--model", middling, batch=Batch(1, 768, 40)).passes / 2


def test_shards_divide_weights_gradients_and_state(middling: Path, tmp_path: Path) -> None:
    batch = Batch(1, 128, 40)
    flags = ["--model", middling, "--full"]
    one = estimate_of(*flags, batch=batch)
    fsdp = estimate_of(*flags, "--num_workers", "4", "--fsdp", "full_shard auto_wrap", batch=batch)
    assert fsdp.weights == pytest.approx(one.weights / 4, rel=0.01)
    assert fsdp.optimiser == one.optimiser // 4
    assert fsdp.gradients == one.gradients // 4
    config = tmp_path / "zero2.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    zero = estimate_of(*flags, "--num_workers", "4", "--deepspeed", config, batch=batch)
    assert zero.weights == one.weights
    assert zero.optimiser == one.optimiser // 4


def test_a_model_of_seven_billion_parameters_is_counted_in_seconds(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    LlamaConfig(vocab_size=32000, **shape).save_pretrained(tmp_path)
    needs = estimate_of("--model", tmp_path, "--lora_target_modules", "q_proj,v_proj", batch=Batch(1, 512, 100))
    assert needs.parameters - needs.trainable == 6_738_415_616  # as Llama-7B has
    assert needs.trainable == 32 * 2 * 8 * 2 * 4096  # as Alpaca-LoRA's trainer prints: 4,194,304
    assert needs.weights == pytest.approx(2 * 6.738e9 + 4 * 4.194e6, rel=0.01)


def test_the_largest_batch_is_that_of_the_order_in_which_samples_come() -> None:
    samples: Any = [
        {"input_ids": [1] * size, "labels": [-100] * (size - 3) + [1] * 3} for size in (5, 9, 30, 12, 40, 7, 8, 6)
    ]
    settings = settings_of("--batch_size", "2", "--per_device_train_batch_size", "1")
    plan = make_plan(settings, has_gpus=False)
    alone = largest_batch(samples, plan, packed=True, group_by_length=False, seed=1)
    assert alone == Batch(1, 40, 3, (40,))
    settings = settings_of("--batch_size", "8", "--per_device_train_batch_size", "8")
    plan = make_plan(settings, has_gpus=False)
    whole = largest_batch(samples, plan, packed=True, group_by_length=False, seed=1)
    assert (whole.rows, whole.tokens, whole.learnt) == (1, 117, 24)
    assert sorted(whole.lengths) == [5, 6, 7, 8, 9, 12, 30, 40]
    assert largest_batch(samples, plan, packed=False, group_by_length=False, seed=1) == Batch(8, 40, 38)


def test_steps_follow_from_records_and_epochs() -> None:
    settings = settings_of("--num_train_epochs", "3", "--batch_size", "16")
    assert total_steps(settings, make_plan(settings, has_gpus=False), 100) == 21
    settings = settings_of("--max_steps", "5")
    assert total_steps(settings, make_plan(settings, has_gpus=False), 100) == 5


GIB = 1024**3


@pytest.mark.parametrize(
    ("nodes", "bundle", "workers", "gib", "says"),
    [
        ([({"CPU": 4, "memory": 16 * GIB}, 1)], {"CPU": 1}, 2, 4, ""),
        ([({"CPU": 4, "memory": 16 * GIB}, 1)], {"CPU": 1}, 5, 1, "5 CPU are needed, and the cluster has 4"),
        ([({"CPU": 4, "memory": 16 * GIB}, 1)], {"CPU": 1, "GPU": 1}, 2, 1, "2 GPU are needed, and the cluster has 0"),
        ([({"CPU": 3, "memory": 16 * GIB}, 2)], {"CPU": 2}, 3, 1, "3 workers with 2 CPU each .* have room for 2"),
        ([({"CPU": 8, "memory": 16 * GIB}, 1)], {"CPU": 1}, 4, 5, "5.37 GB of memory .* room for 3 of 4 workers"),
        ([({"CPU": 8, "GPU": 2, "accelerator_type:T4": 1}, 1)], {"CPU": 1, "GPU": 1}, 2, 20, "21.5 GB a GPU .* T4"),
        ([({"CPU": 8, "GPU": 2, "accelerator_type:H100": 1}, 1)], {"CPU": 1, "GPU": 1}, 2, 20, ""),
        ([({"CPU": 8, "GPU": 2, "accelerator_type:T4": 1}, 1)], {"CPU": 1, "GPU": 2}, 1, 20, "21.5 GB a GPU .* T4"),
        ([({"CPU": 8, "GPU": 2, "accelerator_type:A100": 1}, 1)], {"CPU": 1, "GPU": 2}, 1, 30, ""),
        ([({"CPU": 8, "GPU": 1, "accelerator_type:NEW": 1}, 2)], {"CPU": 1, "GPU": 1}, 2, 500, ""),
    ],
)
def test_what_a_cluster_lacks(nodes: Any, bundle: Any, workers: int, gib: int, says: str) -> None:
    import re

    lines = lacking(nodes, bundle, workers, gib * GIB)
    assert len(lines) == bool(says)
    assert not says or re.search(says, lines[0])
