"""Numbers that a run depends on: which attention each mode takes, the loss, estimates for every family, tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_support import train_here

from alpaca_ray.errors import EstimateError, TrainingError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.testing.tiny import make_tiny_model
from alpaca_ray.train import attention, proof_forward, proof_loss, speed, tf32
from alpaca_ray.train.callbacks import Reporter
from alpaca_ray.train.collate import collator, packed, token_count
from alpaca_ray.train.estimate import estimate
from alpaca_ray.train.held import memory_report
from alpaca_ray.train.largest import Batch
from alpaca_ray.train.loss import HeadLoss
from alpaca_ray.train.model import build_model, grow_embeddings
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.tokenizer import build_tokenizer, own_size

COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def settings_of(*flags: str | Path) -> TrainSettings:
    return parse_settings(TrainSettings, [str(flag) for flag in flags], description="test")


def random_model(folder: Path, kind: str, **options: Any) -> Path:
    """A random model of a family that ``make_tiny_model`` does not make, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    make_tiny_model(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**COMMON, **options})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


# --- estimates ---


FAMILIES = ("llama", "opt", "qwen3", "mistral", "gemma", "gemma2", "gemma3")
WAYS = ("--full", "--attn_implementation eager", "--no_packing")


@pytest.mark.parametrize(
    ("family", "flags"),
    [(family, "") for family in FAMILIES]
    + [(family, flags) for family in ("llama", "opt", "gemma2") for flags in WAYS],
)
def test_every_family_is_estimated_in_every_way_of_attention(family: Any, flags: str, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path, family)
    settings = settings_of("--model", base, *flags.split())
    plan = make_plan(settings, has_gpus=False)
    kind = "gemma3_text" if family == "gemma3" else family
    packing = "none" if "--no" in flags else "position_ids" if "eager" in flags else "borders"
    assert speed.attention_of(settings, plan, kind)[1] == (
        "none" if (family, flags[-5:]) == ("opt", "eager") else packing
    )
    needs = estimate(settings, plan, str(base), Batch(1, 96, 20, (40, 56)))
    assert needs.passes > 0
    assert needs.trainable == needs.parameters if settings.full else needs.trainable < needs.parameters
    # Nothing of the simulation is left behind: a tensor without values in a cache would spoil the next real step.
    assert attention.ceiling.cache_info().currsize == attention._band.cache_info().currsize == 0


def test_an_explicit_attention_takes_what_its_samples_take_not_what_the_row_would(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path, "gemma2")
    settings = settings_of("--model", base)
    plan = make_plan(settings, has_gpus=False)
    apart, whole = (estimate(settings, plan, str(base), Batch(1, 960, 20, lengths)) for lengths in ((60,) * 16, (960,)))
    assert apart.passes < whole.passes / 3


def test_opt_is_counted_with_a_mask_only_where_it_has_one(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path, "opt")
    batch = Batch(1, 960, 1, (60,) * 16)

    def passes(*flags: str) -> int:
        settings = settings_of("--model", base, "--no_bf16", *flags)
        return estimate(settings, make_plan(settings, has_gpus=False), str(base), batch).passes

    assert passes() + 960 * 960 <= passes("--attn_implementation", "sdpa")


def test_a_model_that_cannot_be_simulated_ends_no_run_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_tiny_model(tmp_path / "base")
    settings = settings_of("--model", base)
    plan = make_plan(settings, has_gpus=False)

    def refuses(*_: Any, **__: Any) -> Any:
        raise ValueError("this one wants values")

    monkeypatch.setattr("alpaca_ray.train.simulate.by_sample", refuses)
    with pytest.raises(EstimateError, match="ValueError: this one wants values"):
        estimate(settings, plan, str(base), Batch(1, 96, 20))
    sample = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}
    trainer = SimpleNamespace(args=SimpleNamespace(process_index=0), train_dataset=[sample] * 4)
    job: Any = SimpleNamespace(settings=settings, plan=plan, arguments={}, model_source=str(base))
    report = memory_report(job, trainer, 0, packed=True)
    assert report["estimated_bytes"] is None
    assert "this one wants values" in report["not_estimated"]


# --- attention ---


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.dtype]]:
    """Which way attention to packed rows went, and in which type."""
    found: list[tuple[str, torch.dtype]] = []
    fast, slow = attention.ShortSamples.apply, attention._one

    def spy_fast(query: torch.Tensor, *rest: Any) -> Any:
        found.append(("fast", query.dtype))
        return fast(query, *rest)

    def spy_slow(query: torch.Tensor, *rest: Any) -> Any:
        found.append(("slow", query.dtype))
        return slow(query, *rest)

    monkeypatch.setattr(attention.ShortSamples, "apply", spy_fast)
    monkeypatch.setattr(attention, "_one", spy_slow)
    return found


@pytest.mark.parametrize("flags", ["--bf16", "--bf16 --full", "--bf16 --load_4bit", "--bf16 --load_8bit"])
def test_every_mode_in_bfloat16_takes_the_fast_attention(
    flags: str, tmp_path: Path, taken: list[tuple[str, torch.dtype]]
) -> None:
    base = make_tiny_model(tmp_path / "base", width=64)
    run = train_here(base, tmp_path / "out", "--max_steps", "1", *flags.split())
    assert set(taken) == {("fast", torch.bfloat16)}
    assert all(loss == loss for loss in run.losses)


def test_packed_equals_padded_under_autocast(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.mul_(2)  # else each token attends almost evenly, which would hide where to
    usual = model.config._attn_implementation
    samples: Any = [{"input_ids": list(range(5, 5 + size)), "labels": list(range(5, 5 + size))} for size in (40, 9, 25)]
    found = []
    for packing in ("borders", "none"):
        attention.install(model) if packing == "borders" else model.set_attn_implementation(usual)
        batch = collator(packing, pad_id=0)(samples)
        labels = batch.pop("labels")
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**batch).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        ).backward()
        real = batch["attention_mask"].bool() if packing == "none" else torch.ones_like(batch["input_ids"]).bool()
        gradient = torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None])
        found.append((logits[real].float(), gradient))
    allowed = proof_forward.tolerance("bf16", 2)
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= allowed * theirs.norm()


def test_gpus_before_ampere_do_not_take_the_flash_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        attention._has_flash.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, version=version: version)
        assert attention._has_flash(torch.device("cuda", 0), torch.float16) is expected
        assert not attention._has_flash(torch.device("cuda", 0), torch.float32)
    attention._has_flash.cache_clear()


# --- loss ---


def check_loss(base: Path, folder: Path, *flags: str, spoil: Any = None) -> tuple[Any, dict[str, Any]]:
    run = train_here(base, folder, "--max_steps", "1", *flags)
    trainer = run.trainer
    if spoil:
        spoil(trainer)
    samples = proof_forward.probe_samples(trainer.train_dataset)
    trainer.model.eval()

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        logits: torch.Tensor = trainer.model(**batch).logits
        return logits

    with torch.no_grad():
        return trainer, proof_loss.check_loss(trainer, forward, samples, allowed=1e-5)


@pytest.mark.parametrize("flags", ["", "--full"])
@pytest.mark.parametrize(("kind", "options"), [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.2})])
def test_a_model_that_scales_its_logits_gets_the_loss_of_those(
    kind: str, options: Any, flags: str, tmp_path: Path
) -> None:
    base = random_model(tmp_path / "base", kind, **options)
    trainer, report = check_loss(base, tmp_path / "out", *flags.split())
    assert report["loss_in_head"] is False
    assert report["loss_distance"] <= 1e-5
    assert trainer.loss_head() is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_the_loss_of_other_models_stays_in_the_head(family: Any, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", family)
    _, report = check_loss(base, tmp_path / "out")
    assert report["loss_in_head"] is True


def test_a_loss_that_is_not_the_cross_entropy_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    def spoil(trainer: Any) -> None:
        right = trainer._token_loss
        trainer._token_loss = lambda *args: (right(*args)[0] * 1.01, 0, None)

    with pytest.raises(TrainingError, match=r"differs from the cross-entropy .* by 0\.01"):
        check_loss(tiny_llama, tmp_path / "out", spoil=spoil)


def test_the_scale_of_gradients_is_never_rounded() -> None:
    """In bfloat16 a GPU rounds a scale that lies on it first, which moves every gradient alike, by up to 0.2 %."""
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.mul_):
                products.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    hidden, weight = torch.randn(8, 16).bfloat16().requires_grad_(), torch.randn(50, 16).bfloat16().requires_grad_()
    loss = HeadLoss.apply(hidden, weight, None, torch.randint(0, 50, (8,)), 0.0, None)
    with Watch():
        found = torch.autograd.grad(loss, (hidden, weight), torch.tensor(1 / 371))
    assert products == [torch.float32] * 2
    assert [gradient.dtype for gradient in found] == [torch.bfloat16] * 2


def test_rows_of_one_token_and_models_spread_over_gpus(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = train_here(tiny_llama, tmp_path / "out", "--max_steps", "1", "--no_packing").trainer
    alone: Any = [{"input_ids": [5], "labels": [5]}]
    total, count, _ = trainer._token_loss(trainer.model, collator("none", pad_id=0)(alone))
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    sample: Any = {"input_ids": list(range(5, 25)), "labels": [-100] * 9 + list(range(14, 25))}
    batch = collator("none", pad_id=0)([sample, {**sample, "labels": [-100] * 15 + list(range(20, 25))}])
    trainer.model.eval()
    usual = trainer._token_loss(trainer.model, batch)[0]
    seen = []
    trainer._spread = True
    forward = trainer.model.forward
    trainer.model.forward = lambda **given: seen.append(given["logits_to_keep"]) or forward(**given)
    spread = trainer._token_loss(trainer.model, batch)[0]
    assert seen == [12]  # a number of last positions: no index that lies on another device than the states
    torch.testing.assert_close(spread, usual)


# --- collating, tokens ---


def test_a_batch_without_weight_has_no_tokens() -> None:
    for kind in ("borders", "none"):
        assert token_count(collator(kind, pad_id=0)([])) == 0
    assert token_count(packed([{"input_ids": [1, 2], "labels": [1, 2]}])) == 2


def test_what_cannot_be_packed_is_said() -> None:
    plan = make_plan(settings_of("--model", "x"), has_gpus=False)
    assert speed.not_packed(settings_of("--model", "x"), plan, "llama") == []
    assert speed.not_packed(settings_of("--model", "x", "--no_packing"), plan, "gpt_neox") == []
    (line,) = speed.not_packed(settings_of("--model", "x"), plan, "gpt_neox")
    assert "padded, not packed" in line
    assert "gpt_neox" in line
    eager = settings_of("--model", "x", "--attn_implementation", "eager")
    (line,) = speed.not_packed(eager, plan, "opt")
    assert "opt models with --attn_implementation eager" in line


def test_an_added_token_that_takes_a_spare_row_starts_as_the_mean_of_the_others(tmp_path: Path) -> None:
    """As in Qwen's, whose embeddings have more rows than its tokenizer has tokens."""
    from transformers import AutoModelForCausalLM

    base = random_model(tmp_path / "base", "llama", vocab_size=520, tie_word_embeddings=False)
    flags = ["--model_name_or_path", str(base), "--full", "--no_bf16", "--output_dir", str(tmp_path / "out")]
    settings = settings_of(*flags)
    tokenizer = build_tokenizer(settings, str(base))
    assert (own_size(settings, str(base)), len(tokenizer), tokenizer.pad_token) == (512, 513, "[PAD]")
    before = AutoModelForCausalLM.from_pretrained(base)
    model = build_model(settings, make_plan(settings, has_gpus=False), tokenizer, str(base))
    for old, new in (
        (before.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (before.get_output_embeddings().weight, model.get_output_embeddings().weight),
    ):
        assert old.shape == new.shape
        torch.testing.assert_close(new[512], old[:512].mean(0))
        assert torch.equal(new[:512], old[:512])
        assert torch.equal(new[513:], old[513:])


def test_tokens_beyond_the_last_row_get_rows(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_model(tmp_path, "llama", vocab_size=514))
    old = model.get_input_embeddings().weight.detach().clone()
    grow_embeddings(model, 517, own=513)
    new = model.get_input_embeddings().weight
    assert new.shape[0] == 517
    torch.testing.assert_close(new[513:], old[:513].mean(0).expand(4, -1))
    assert torch.equal(new[:513], old[:513])


# --- GPUs ---


def test_a_model_spread_over_gpus_is_measured_against_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("alpaca_ray.train.memory.in_use", lambda _: 0)
    found = []
    for gpus in (1, 2):
        reporter = Reporter(tmp_path, parameters=8 * 10**9, mode="full", gpus_per_worker=gpus)
        reporter.trainer = SimpleNamespace(
            tokens_seen=10**6,
            slots_seen=10**6,
            args=SimpleNamespace(use_cpu=False, world_size=1, device="cpu"),
            accelerator=SimpleNamespace(reduce=lambda value, reduction: value),
        )
        reporter._seconds, reporter._steps = 100.0, 1
        row: dict[str, Any] = {}
        reporter._add_speed(row, SimpleNamespace(max_steps=2, global_step=1))
        found.append(row["model_flops_utilisation"])
    assert found[0] == pytest.approx(2 * found[1], abs=2e-4)


def test_tf32_is_dropped_with_a_warning_where_a_gpu_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(settings_of("--model", "x", "--tf32"), has_gpus=True)
    old = tf32.without(plan, [({"GPU": 1, "accelerator_type:T4": 1}, 1), ({"GPU": 1, "accelerator_type:A100": 1}, 1)])
    assert old.tf32 is None
    assert "--tf32 has no effect: T4 GPUs are older than Ampere" in old.warnings[-1]
    assert tf32.without(plan, [({"GPU": 1, "accelerator_type:H100": 1}, 1)]) == plan
    for there, expected in ((False, None), (True, True)):
        monkeypatch.setattr("transformers.utils.import_utils.is_torch_tf32_available", lambda there=there: there)
        assert tf32.usable({"tf32": True, "bf16": True}) == {"tf32": expected, "bf16": True}
