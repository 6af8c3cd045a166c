"""Options of a run whose effect can be seen in one process: noise, checkpointing, optimisers, schedules, variants."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import train_here

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import arguments
from alpaca_ray.train.collate import Batch, packed, padded
from alpaca_ray.train.encode import Sample
from alpaca_ray.train.noise import EmbeddingNoise
from alpaca_ray.train.options import BITSANDBYTES
from alpaca_ray.train.plan import make_plan


def sample(length: int) -> Sample:
    return {"input_ids": [3] * length, "labels": [3] * length}


SAMPLES = [sample(4), sample(64), sample(16)]


class Silent(torch.nn.Module):
    """Gives every token the embedding 0, so that all that comes out is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(8, 256)
        torch.nn.init.zeros_(self.embedding.weight)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (packed(SAMPLES), [(0, 0, 4), (0, 4, 68), (0, 68, 84)]),
        (packed(SAMPLES, block_mask=True), [(0, 0, 4), (0, 4, 68), (0, 68, 84)]),
        (padded(SAMPLES, pad_id=0), [(0, 0, 4), (1, 0, 64), (2, 0, 16)]),
        (packed([]), [(0, 0, 2)]),
    ],
)
def test_each_sample_gets_the_noise_of_its_own_length(batch: Batch, rows: list[tuple[int, int, int]]) -> None:
    model = Silent()
    noise = EmbeddingNoise(model, 5.0)
    noise.on_train_begin(None, None, None)
    noise.see(batch)
    found = model.embedding(batch["input_ids"])
    for row, start, end in rows:
        reach = 5 / math.sqrt((end - start) * 256)
        assert 0.9 * reach < found[row, start:end].abs().max() <= reach
        assert abs(found[row, start:end].mean()) < reach / 10
    model.eval()
    assert not model.embedding(batch["input_ids"]).any()
    model.train()
    noise.on_train_end(None, None, None)
    assert not model.embedding(batch["input_ids"]).any()


@pytest.mark.parametrize("flags", [["--full"], ["--no_packing", "--lora_dropout", "0"]], ids=["packed", "padded"])
def test_noise_changes_what_is_learnt_and_leaves_nothing_on_the_model(
    flags: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    plain = train_here(tiny_llama, tmp_path, *flags)
    noisy = train_here(tiny_llama, tmp_path, *flags, "--neftune_noise_alpha", "5")
    again = train_here(tiny_llama, tmp_path, *flags, "--neftune_noise_alpha", "5")
    assert noisy.losses == again.losses
    for without, with_noise in zip(plain.losses, noisy.losses, strict=True):
        assert 1e-4 < abs(without - with_noise) < 1
    embedding = noisy.trainer.model.get_input_embeddings()
    assert not embedding._forward_hooks
    assert not hasattr(embedding, "neftune_noise_alpha")
    assert noisy.after.keys() == plain.after.keys()


def deep_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the forward passes of decoder layers' feed-forward blocks while something trains."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = [0]
    forward = LlamaMLP.forward

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        return forward(self, *args, **options)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    return calls


@pytest.mark.parametrize("flags", [["--full"], [], ["--load_4bit"], ["--use_dora"]], ids=str)
def test_checkpointing_computes_twice_and_takes_the_same_steps(
    flags: list[str], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropping = [] if flags == ["--full"] else ["--lora_dropout", "0.3"]  # the same elements both times
    calls = deep_calls(monkeypatch)
    kept = train_here(tiny_llama, tmp_path, *flags, *dropping)
    once, calls[0] = calls[0], 0
    computed = train_here(tiny_llama, tmp_path, *flags, *dropping, "--gradient_checkpointing")
    assert calls[0] == 2 * once > 0
    assert computed.losses == pytest.approx(kept.losses, abs=1e-5)
    for name in kept.trainable:
        assert torch.allclose(computed.after[name], kept.after[name], atol=1e-5), name
    assert kept.changed


def bits_of(optimiser: Any) -> set[torch.dtype]:
    return {state["state1"].dtype for state in optimiser.state.values()}


@pytest.mark.parametrize(
    ("name", "like", "kinds", "tolerance"),
    [
        ("adamw_bnb_8bit", "adamw_torch", {torch.uint8, torch.float32}, 0.05),
        ("paged_adamw_8bit", "adamw_8bit", {torch.uint8, torch.float32}, 0.0),
        ("paged_adamw_32bit", "adamw_torch", {torch.float32}, 1e-4),
        ("paged_lion_8bit", "lion_8bit", {torch.uint8, torch.float32}, 0.0),
    ],
)
def test_bitsandbytes_optimisers_run_on_the_cpu(
    name: str, like: str, kinds: set[torch.dtype], tolerance: float, wide_llama: Path, tmp_path: Path
) -> None:
    flags = ["--full", "--max_steps", "4", "--learning_rate", "1e-3"]
    found = train_here(wide_llama, tmp_path, *flags, "--optim", name)
    expected = train_here(wide_llama, tmp_path, *flags, "--optim", like)
    inner = getattr(found.trainer.optimizer, "optimizer", found.trainer.optimizer)
    assert type(inner).__module__.startswith("bitsandbytes")
    assert bits_of(inner) == kinds  # embeddings and small tensors keep 32 bits
    assert found.changed == found.trainable
    assert found.losses == pytest.approx(expected.losses, abs=tolerance)
    if name == "adamw_bnb_8bit":
        assert found.losses != expected.losses


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers are large enough for 8-bit states."""
    from alpaca_ray.testing.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "wide-llama", "llama", width=64)


def test_a_stabilised_rank_scales_by_its_root(tiny_llama: Path, tmp_path: Path) -> None:
    flags = ["--lora_r", "4", "--lora_dropout", "0", "--max_steps", "3"]
    stable = train_here(tiny_llama, tmp_path, *flags, "--lora_alpha", "16", "--use_rslora")  # 16 / 2
    twice = train_here(tiny_llama, tmp_path, *flags, "--lora_alpha", "32")  # 32 / 4
    plain = train_here(tiny_llama, tmp_path, *flags, "--lora_alpha", "16")  # 16 / 4
    assert stable.losses == twice.losses
    assert stable.losses[0] == plain.losses[0]  # the adapter begins as nothing
    assert stable.losses[-1] != pytest.approx(plain.losses[-1], abs=1e-4)


def problem(*flags: str) -> str:
    settings = parse_settings(TrainSettings, list(flags), description="test")
    with pytest.raises(SettingsError) as caught:
        arguments.check(arguments.translate(settings, make_plan(settings, has_gpus=False), "", has_validation=True))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_and_options_that_do_not_exist_are_answered_with_those_that_do() -> None:
    schedule = problem("--lr_scheduler_type", "cosin")
    assert schedule.startswith("--lr_scheduler_type cosin: did you mean cosine? There are linear, cosine, ")
    assert "warmup_stable_decay" in schedule
    assert problem("--optim", "adamw_9bit").startswith("--optim adamw_9bit: did you mean adamw_8bit? There are ")
    assert problem("--lr_scheduler_type", "warmup_stable_decay").endswith(
        "needs --lr_scheduler_kwargs: missing 1 required positional argument: 'num_decay_steps'"
    )
    restarts = ["--lr_scheduler_type", "cosine_with_restarts", "--lr_scheduler_kwargs"]
    assert problem(*restarts, '{"cycles": 2}').endswith("unexpected keyword argument 'cycles'")
    assert problem(*restarts, "num_cycles=2").startswith("--lr_scheduler_kwargs num_cycles=2: must be a mapping")
    assert problem("--optim", "adamw_torch_8bit").startswith("--optim adamw_torch_8bit: You need to have `torchao")
    for value in ("five", "-1", "true", "nan"):
        assert problem("--neftune_noise_alpha", value).startswith("--neftune_noise_alpha ")


def test_options_that_exist_pass() -> None:
    for flags in (
        ["--lr_scheduler_type", "cosine_with_restarts", "--lr_scheduler_kwargs", '{"num_cycles": 2}'],
        ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"num_decay_steps": 2}'],
        ["--optim", "paged_adamw_8bit", "--neftune_noise_alpha", "5"],
    ):
        settings = parse_settings(TrainSettings, flags, description="test")
        plan = make_plan(settings, has_gpus=False)
        arguments.check(arguments.translate(settings, plan, "", has_validation=True))


def test_a_paged_optimiser_on_the_cpu_says_that_it_pages_nothing() -> None:
    settings = parse_settings(TrainSettings, ["--optim", "paged_adamw_8bit"], description="test")
    assert make_plan(settings, has_gpus=False).warnings == [
        "--optim paged_adamw_8bit pages nothing on the CPU: it runs as adamw_8bit does"
    ]
    assert make_plan(settings, has_gpus=True).warnings == []


def test_bitsandbytes_optimisers_are_refused_under_fsdp_and_are_the_ones_that_transformers_takes_from_it() -> None:
    from transformers import trainer_optimizer

    for name in sorted(BITSANDBYTES):
        settings = parse_settings(TrainSettings, ["--fsdp", "full_shard", "--optim", name], description="test")
        with pytest.raises(SettingsError, match=f"--fsdp with --optim {name}: .*--deepspeed in place of --fsdp"):
            make_plan(settings, has_gpus=False)
    handlers = trainer_optimizer._OPTIMIZER_HANDLERS
    taken = {str(name.value) for name, handler in handlers.items() if "bitsandbytes" in handler.__name__}
    assert taken == BITSANDBYTES
