"""In every family, what was saved is proven to be what was trained, and what is damaged, unseen or idle is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alpaca_ray.errors import SettingsError, TrainingError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import attention, proof_forward, proof_saved, proof_weights
from alpaca_ray.train.adapter import add_adapter
from alpaca_ray.train.architecture import build_skeleton, check_targets
from alpaca_ray.train.collate import packed
from alpaca_ray.train.decoder import beside_text, freeze_beside_text
from alpaca_ray.train.encode import Sample
from alpaca_ray.train.model import build_model
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.proof import Prover

WIDTHS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
HEAD: dict[str, Any] = {"head_dim": 8}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "qwen2": {},
    "qwen3": HEAD,
    "mistral": {"sliding_window": 32},
    "gemma": HEAD,
    "gemma2": HEAD | {"sliding_window": 32},
    "gemma3_text": HEAD | {"sliding_window": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": HEAD | {"num_experts": 4, "moe_intermediate_size": 8, "num_experts_per_tok": 2},
    "gpt_neox": {"tie_word_embeddings": False},
    "gemma3": {
        "text_config": WIDTHS | HEAD,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 1,
    },
}
FAMILIES = sorted(OWN)
MIXTURES = ("mixtral", "qwen3_moe")
# Saved under other names than in memory: read back through the library.
CONVERTED = ("mixtral", "qwen3_moe", "gpt_neox", "gemma3")


def build(family: str, **changes: Any) -> Any:
    """A random model of about 5,000 parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = OWN[family] if family == "gemma3" else WIDTHS | OWN[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options | changes), dtype=torch.float32)
    model.config.use_cache = False
    return model.eval()


def settings(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, ["--lora_r", "2", *flags], description="test")


def loss_of(model: Any) -> torch.Tensor:
    ids = torch.arange(1, 21)[None]
    logits = model(input_ids=ids, position_ids=torch.arange(20)[None]).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])


def spoil(folder: Path, stem: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    values = load_file(folder / f"{stem}.safetensors")
    change(values)
    save_file(values, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def raise_one_value(values: dict[str, torch.Tensor]) -> None:
    name = max(name for name in values if values[name].ndim > 1 and "layers.1" in name and "vision" not in name)
    values[name].view(-1)[3] += 0.5


def drop_one(values: dict[str, torch.Tensor]) -> None:
    del values[max(name for name in values if "layers.1" in name)]


def add_one(values: dict[str, torch.Tensor]) -> None:
    values["another"] = torch.zeros(1)


FAULTS = ((raise_one_value, "differs from memory by up to 0.5"), (drop_one, "lacks "), (add_one, "holds another"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_of_each_family_is_proven_and_a_damaged_one_found(family: str, tmp_path: Path) -> None:
    model = build(family)
    names = {name for name, _ in model.named_parameters()}
    for number, (change, words) in enumerate(FAULTS):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        assert proof_saved.check_model(model, folder, writes=True) >= len(names)
        spoil(folder, "model", change)
        with pytest.raises(TrainingError, match=f"what was saved is not what was trained: .*{words}"):
            proof_saved.check_model(model, folder, writes=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_families_that_are_saved_under_other_names_are_loaded_back(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    loaded = proof_saved._loaded

    def noted(folder: Path, there: Any) -> proof_saved.Saved:
        calls.append(folder)
        return loaded(folder, there)

    monkeypatch.setattr(proof_saved, "_loaded", noted)
    model = build(family)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    proof_saved.check_model(model, tmp_path, writes=True)
    assert calls == ([tmp_path] if family in CONVERTED else [])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", ["0", "0.05"])
def test_an_adapter_of_each_family_is_proven_saved_and_read_back(family: str, dropout: str, tmp_path: Path) -> None:
    from peft import PeftModel

    flags = settings("--lora_dropout", dropout)
    model = add_adapter(flags, build(family))
    count = proof_weights.check_trainable(model, flags.lora_target_modules)
    adapted = {name.split(".lora_")[0] for name, part in model.named_parameters() if part.requires_grad}
    assert count == 2 * len(adapted)
    assert not any("expert" in name or "vision" in name for name in adapted)
    assert {name.rsplit(".", 1)[-1] for name in adapted} >= (
        {"query_key_value", "dense"} if family == "gpt_neox" else {"q_proj", "v_proj"}
    )
    loss_of(model).backward()
    # DDP waits for a gradient of each of them. A is multiplied by zeros, yet its gradient is there.
    assert all(part.grad is not None for part in model.parameters() if part.requires_grad)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if ".lora_B" in name:
                part.normal_()
    model.save_pretrained(tmp_path)
    assert proof_saved.check_adapter(model, tmp_path, writes=True) == count
    if family in (*MIXTURES, "gemma3"):
        named = set(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"])
        attention_layers = {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert named - attention_layers == (set() if family in MIXTURES else {"gate_proj", "up_proj", "down_proj"})
    there = PeftModel.from_pretrained(build(family), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loss_of(there), loss_of(model.eval()))
        assert not torch.equal(loss_of(there), loss_of(build(family)))
    spoil(tmp_path, "adapter_model", raise_one_value)
    with pytest.raises(TrainingError, match="what was saved is not what was trained"):
        proof_saved.check_adapter(model, tmp_path, writes=True)


@pytest.mark.parametrize("dora", [(), ("--use_dora",)], ids=["lora", "dora"])
def test_an_adapter_of_the_embedding_is_proven_too(dora: tuple[str, ...], tmp_path: Path) -> None:
    flags = settings("--lora_target_modules", "[embed_tokens,q_proj]", *dora)
    model = add_adapter(flags, build("llama"))
    count = proof_weights.check_trainable(model, flags.lora_target_modules, magnitudes=bool(dora))
    model.save_pretrained(tmp_path)
    assert proof_saved.check_adapter(model, tmp_path, writes=True) == count == 3 * (3 if dora else 2)

    def blank(values: dict[str, torch.Tensor]) -> None:
        values[next(name for name in values if "embedding_B" in name)].zero_()

    spoil(tmp_path, "adapter_model", blank)
    with pytest.raises(TrainingError, match=r"embed_tokens\.lora_embedding_B differs from memory"):
        proof_saved.check_adapter(model, tmp_path, writes=True)


def test_only_the_text_part_of_gemma_3_is_trained_in_full() -> None:
    model = build("gemma3")
    with pytest.raises(TrainingError, match=r"multi_modal_projector\..* is trained unasked \(and 33"):
        proof_weights.check_trainable(model, None)
    assert freeze_beside_text(model) == ["model.vision_tower", "model.multi_modal_projector"]
    trained = {name for name, part in model.named_parameters() if part.requires_grad}
    assert proof_weights.check_trainable(model, None) == len(trained)
    loss_of(model).backward()
    assert trained == {name for name, part in model.named_parameters() if part.grad is not None}
    for family in set(FAMILIES) - {"gemma3"}:
        text = build(family)
        assert not freeze_beside_text(text)
        assert all(part.requires_grad for part in text.parameters())


def test_a_run_in_full_loads_the_whole_model_and_freezes_what_no_text_goes_through(tmp_path: Path) -> None:
    build("gemma3").save_pretrained(tmp_path)
    flags = parse_settings(TrainSettings, ["--model", str(tmp_path), "--full", "--no_bf16"], description="test")
    model = build_model(flags, make_plan(flags, has_gpus=False), range(96), str(tmp_path))
    for found in (model, build_skeleton(flags, str(tmp_path))):
        trained = {name for name, part in found.named_parameters() if part.requires_grad}
        assert trained == {name for name, _ in found.named_parameters() if ".language_model." in name}
    proof_weights.check_trainable(model, None)


def test_a_layer_of_the_vision_tower_cannot_be_named() -> None:
    model = build("gemma3")
    with pytest.raises(SettingsError, match="fc1: the model has no such layer; it has down_proj, embed_tokens"):
        check_targets(model, ["q_proj", "fc1"])
    adapted = add_adapter(settings("--lora_target_modules", "[q_proj,v_proj]"), model)
    names = [name for name, part in adapted.named_parameters() if part.requires_grad]
    assert len(names) == 8
    assert all(".language_model." in name for name in names)
    assert beside_text(adapted) == ["model.vision_tower", "model.multi_modal_projector"]


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.parametrize("dropout", ["0", "0.05"])
def test_names_that_peft_puts_on_experts_are_refused_in_one_line(dropout: str) -> None:
    model = build("qwen3_moe", mlp_only_layers=[0])
    with pytest.raises(
        SettingsError, match=r"--lora_target_modules q_proj,gate_proj,up_proj: .* of the experts"
    ) as caught:
        add_adapter(settings("--lora_target_modules", "[q_proj,gate_proj,up_proj]", "--lora_dropout", dropout), model)
    assert "\n" not in str(caught.value)


SAMPLES: list[Sample] = [
    {"input_ids": list(range(start, start + size)), "labels": list(range(start, start + size))}
    for start, size in ((1, 30), (40, 20))
]


def windowless(module: Any, *states: torch.Tensor, **options: Any) -> Any:
    return attention.packed_attention(module, *states, **options | {"sliding_window": None})


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_a_window_that_the_packed_path_forgets_is_found(family: str) -> None:
    from transformers import AttentionInterface

    def check() -> float:
        with torch.no_grad(), proof_forward.short_windows(model) as places:
            assert places
            found = proof_forward.check_batches(
                lambda batch: model(**batch).logits,
                lambda some: packed(some, borders=True),
                proof_forward.probe_samples(SAMPLES),
                packed=True,
                vocabulary=96,
                allowed=1e-5,
                leak_allowed=1e-5,
            )
        return found["batch_distance"]

    model = build(family)
    attention.install(model)
    assert check() < 1e-5
    AttentionInterface.register(attention.NAME, windowless)
    try:
        with pytest.raises(TrainingError, match="packed and padded logits differ by"):
            check()
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)
    assert model.config.sliding_window == 32
    windows = [vars(layer.self_attn).get("sliding_window") for layer in model.model.layers]
    assert windows == {"mistral": [None, None], "gemma2": [32, None], "gemma3_text": [32, 32]}[family]


def test_probe_samples_have_their_length_whatever_the_records() -> None:
    short: list[Sample] = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    first, second = proof_forward.probe_samples(short)
    assert [len(first["input_ids"]), len(second["labels"])] == [24, 17]
    assert first["input_ids"][:7] == [5, 6, 7, 5, 6, 7, 5]


def test_a_layer_that_learns_nothing_while_others_do_is_found() -> None:
    model = add_adapter(settings(), build("llama"))
    movement = proof_weights.Movement(model)
    assert len(movement.zero) == 14
    assert all(".lora_B" in name for name in movement.zero)
    assert proof_weights.idle_layer([movement.zero], [movement.idle(model)]) is None  # nothing moved: another check's
    rest = [part for name, part in model.named_parameters() if ".lora_B" in name and "layers.1.mlp.up_proj" not in name]
    with torch.no_grad():
        for part in rest:
            part.view(-1)[1] = 1e-12
    assert movement.moved(model)
    assert proof_weights.idle_layer([movement.zero], [movement.idle(model)]) == "model.layers.1.mlp.up_proj"
    # Sharded: what moved on one worker only has moved, and what was no zero on one was none.
    assert proof_weights.idle_layer([movement.zero] * 2, [movement.idle(model), set()]) is None
    assert proof_weights.idle_layer([movement.zero, set()], [movement.idle(model), set()]) is None
    loss_of(model).backward()
    with torch.no_grad():
        for part in model.parameters():
            if part.grad is not None:
                part -= 0.1 * part.grad
    assert not movement.idle(model)
    assert not proof_weights.Movement(model).zero  # an adapter that goes on has no zeros to wait for


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_stops_where_a_layer_learns_nothing_soon_or_at_its_end(steps: int, tmp_path: Path) -> None:
    """As gradient checkpointing without gradients of its inputs would leave the first layers."""
    flags = settings("--no_bf16")
    model = add_adapter(flags, build("llama"))
    optimiser = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=0.1)
    prover = Prover(flags, make_plan(flags, has_gpus=False), "none")
    prover.trainer = SimpleNamespace(
        model=model,
        optimizer=optimiser,
        accelerator=None,
        args=SimpleNamespace(process_index=0, load_best_model_at_end=False),
    )
    prover._moving = proof_weights.Movement(model)

    def learn() -> None:
        for _ in range(steps):
            loss_of(model).backward()
            for name, part in model.named_parameters():
                if "layers.0" in name and not whole:
                    part.grad = None
            optimiser.step()
            optimiser.zero_grad()
            prover.on_optimizer_step(None, None, None)
        model.save_pretrained(tmp_path)
        prover.check_saved(tmp_path)

    whole = False
    with pytest.raises(TrainingError, match=rf"adapter of model\.layers\.0\..* is as it was after {steps} steps"):
        learn()
    assert tmp_path.joinpath("adapter_config.json").is_file() is (steps < 3)
    whole = True
    learn()
    assert prover.report["tensors_read_back"] == 28
