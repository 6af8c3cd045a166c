"""Each family of models that is named learns, as an adapter and in full, and plain libraries read what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from train_support import train_here
from transformers import AutoModelForCausalLM

from alpaca_ray.testing.tiny import Family, make_tiny_model

FAMILIES: tuple[Family, ...] = ("llama", "opt", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3")
TOKENS = torch.tensor([[1, 20, 300, 41, 5, 77]])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_learns_and_plain_peft_reads_it_back(family: Family, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", family)
    run = train_here(base, tmp_path / "out", "--lora_r", "2")
    assert run.changed == run.trainable
    assert all("lora_" in name for name in run.trainable)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in run.trainable} >= {"q_proj", "v_proj"}
    assert not any("lm_head" in name for name in run.trainable)
    run.trainer.save_model(str(tmp_path / "out"))
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        untrained = plain(TOKENS).logits
        expected = run.trainer.model.eval()(TOKENS).logits
        loaded = PeftModel.from_pretrained(plain, tmp_path / "out").eval()(TOKENS).logits
    assert torch.allclose(loaded, expected, atol=1e-5)
    assert not torch.allclose(untrained, expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_learns_in_full_fine_tuning(family: Family, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", family)
    run = train_here(base, tmp_path / "out", "--full")
    assert run.trainable == set(run.before)
    # A constant added to every key cancels in the softmax: biases of keys have no gradient.
    assert run.trainable - run.changed <= {name for name in run.trainable if name.endswith("k_proj.bias")}
    run.trainer.save_model(str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(TOKENS).logits, run.trainer.model.eval()(TOKENS).logits, atol=1e-5)
