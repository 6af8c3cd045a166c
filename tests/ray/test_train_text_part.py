"""Two workers train the text part of a model that also has a vision tower, and what they save loads back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from train_runs import Runs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

TOKENS = torch.tensor([[1, 20, 300, 41, 5, 77]])


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from transformers import AutoModelForCausalLM, Gemma3Config

    folder = tmp_path_factory.mktemp("text_part")
    text = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text | heads, vision_config=vision | sizes, mm_tokens_per_image=1)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "base")
    for file in tiny_llama.glob("*token*"):
        shutil.copy(file, folder / "base")
    return Runs(folder / "base", folder)


def test_an_adapter_of_the_text_part_trains_on_two_workers(runs: Runs) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    content = runs.run("lora", "--lora_r", "2", "--num_workers", "2", "--max_steps", "4")
    assert content["wrapper"] == "DistributedDataParallel"
    assert content["proof"]["beside_text"] == ["model.vision_tower", "model.multi_modal_projector"]
    names = runs.weights("lora")
    assert len(names) == content["proof"]["trained_tensors"] == content["proof"]["tensors_read_back"] == 28
    assert all(".language_model." in name for name in names)
    assert content["validation_loss_after"] < content["validation_loss_before"]
    base = AutoModelForCausalLM.from_pretrained(runs.base).eval()
    with torch.no_grad():
        before = base(TOKENS).logits
        after = PeftModel.from_pretrained(base, runs.folder / "lora").eval()(TOKENS).logits
    assert (before - after).abs().max() > 1e-2


def test_the_text_part_trains_in_full_on_two_workers_and_the_rest_stays(runs: Runs) -> None:
    from transformers import AutoModelForCausalLM

    content = runs.run("full", "--full", "--num_workers", "2", "--max_steps", "4")
    assert content["wrapper"] == "DistributedDataParallel"
    assert content["packing"] == "borders"
    before = dict(AutoModelForCausalLM.from_pretrained(runs.base).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(runs.folder / "full").named_parameters())
    assert content["proof"]["tensors_read_back"] >= len(after)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in after if ".language_model." in name}
    assert content["validation_loss_after"] < content["validation_loss_before"]
