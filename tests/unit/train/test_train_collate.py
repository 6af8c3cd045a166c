"""Packed and padded batches: their shapes, and that a model sees the same samples in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import read_records
from alpaca_ray.train import attention
from alpaca_ray.train.collate import collator, packed, packing_of, padded, token_count
from alpaca_ray.train.encode import IGNORE_INDEX, Sample, encode

SHORT: list[Sample] = [
    {"input_ids": [1, 5, 6], "labels": [-100, 5, 6]},
    {"input_ids": [1, 7], "labels": [1, 7]},
]


def test_padding_goes_by_length_never_by_id() -> None:
    batch = padded([*SHORT, {"input_ids": [1, 0, 0, 0], "labels": [-100, 0, 0, 0]}], pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 0], [1, 7, 0, 0], [1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"][2].tolist() == [-100, 0, 0, 0]


def test_left_padding() -> None:
    batch = padded(SHORT, pad_id=0, side="left")
    assert batch["input_ids"].tolist() == [[1, 5, 6], [0, 1, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 5, 6], [-100, -100, 7]]


def test_a_packed_row_holds_every_sample_and_predicts_nothing_across_borders() -> None:
    batch = packed(SHORT, block_mask=True)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 1, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 5, 6, -100, 7]]
    assert batch["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert token_count(batch) == 5
    assert token_count(padded(SHORT, pad_id=0)) == 5


@pytest.mark.parametrize("make", [collator("none", pad_id=0), collator("position_ids", pad_id=0)])
def test_a_worker_without_a_sample_gets_a_batch_without_weight(make: Any) -> None:
    batch = make([])
    assert (batch["labels"] == IGNORE_INDEX).all()


def test_families_that_were_not_checked_are_padded() -> None:
    assert packing_of("llama", "sdpa") == "position_ids"
    assert packing_of("opt", "sdpa") == "mask"
    assert packing_of("opt", "eager") == "none"
    assert packing_of("opt", attention.NAME) == packing_of("gemma2", "flash_attention_2") == "borders"
    assert packing_of("gpt_neox", attention.NAME) == "none"
    assert packing_of("gpt_neox", "sdpa") == "none"


def tiny_of(family: str, folder: Path) -> Any:
    """A tiny random model of a family, with Llama's tokenizer size."""
    import transformers as hf

    common = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    rotary = {**common, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    configs = {
        "llama": lambda: hf.LlamaConfig(**rotary),
        "mistral": lambda: hf.MistralConfig(**rotary),
        "qwen2": lambda: hf.Qwen2Config(**{k: v for k, v in rotary.items() if k != "head_dim"}),
        "qwen3": lambda: hf.Qwen3Config(**rotary),
        "gemma3_text": lambda: hf.Gemma3TextConfig(**rotary, sliding_window=16),
        "gemma2": lambda: hf.Gemma2Config(**rotary, sliding_window=16, query_pre_attn_scalar=8),
        "gemma": lambda: hf.GemmaConfig(**rotary),
        "mixtral": lambda: hf.MixtralConfig(**rotary, num_local_experts=2),
        "smollm3": lambda: hf.SmolLM3Config(
            **{k: v for k, v in rotary.items() if k != "head_dim"}, pad_token_id=0, bos_token_id=1, eos_token_id=2
        ),
        "opt": lambda: hf.OPTConfig(**common, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0),
    }
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configs[family](), dtype=torch.float32)
    model.config.use_cache = False
    # Random weights of the usual size attend almost evenly, which would hide a leak between samples.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


FAMILIES = ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "opt"]


@pytest.mark.parametrize("own", [True, False], ids=["own attention", "the library's"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_and_padded_give_the_same_logits_loss_and_gradients(family: str, own: bool, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    samples = encode(read_records("seeds")[:5], tokenizer, STANFORD, max_length=200)
    model = tiny_of(family, tiny_llama).eval()
    usual = model.config._attn_implementation
    if own:
        attention.install(model)
    packing = packing_of(model.config.model_type, model.config._attn_implementation)
    assert packing == "borders" if own else packing in ("position_ids", "mask")
    results = []
    for way in (packing, "none"):
        model.set_attn_implementation(attention.NAME if own and way != "none" else usual)
        batch = collator(way, pad_id=0)(samples)
        labels = batch.pop("labels")
        model.zero_grad()
        logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        real = batch["attention_mask"].bool() if way == "none" else torch.ones_like(batch["input_ids"]).bool()
        results.append((logits[real], loss, gradient))
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_padded_rows_and_rows_of_one_sample_are_computed_as_by_the_library(family: str, tiny_llama: Path) -> None:
    model = tiny_of(family, tiny_llama).eval()
    sample: Sample = {"input_ids": list(range(5, 45)), "labels": list(range(5, 45))}
    short: Sample = {"input_ids": list(range(60, 69)), "labels": list(range(60, 69))}
    batches = [padded([sample, short], pad_id=0), packed([sample]), packed([sample], borders=True)]
    found = []
    for install in (False, True):
        if install:
            attention.install(model)
        found.append([model(**{k: v for k, v in batch.items() if k != "labels"}).logits for batch in batches])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_opt_leaks_across_samples_by_position_ids_alone(tiny_llama: Path) -> None:
    """Why OPT gets a mask; it also shows that the comparison above would see a leak."""
    model = tiny_of("opt", tiny_llama).eval()
    samples = [{"input_ids": list(range(5, 25)), "labels": list(range(5, 25))} for _ in range(2)]
    first, second = (
        model(**{k: v for k, v in packed(samples, block_mask=mask).items() if k != "labels"}).logits[0, 20:]
        for mask in (True, False)
    )
    assert (first - second).abs().max() > 1e-3
