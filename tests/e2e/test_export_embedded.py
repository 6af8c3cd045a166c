"""The embedded model with an adapter, merged by the real job: answers, greedy text, and the name it is found by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alpaca_ray.models import fetch_embedded
from alpaca_ray.prompts import ALPACA_LORA

pytestmark = pytest.mark.e2e

JOB = Path(__file__).resolve().parents[2] / "jobs" / "export.py"


def test_the_embedded_model_merges_as_it_is_served(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(fetch_embedded(), dtype=torch.float32).eval()
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    model.peft_config["default"].base_model_name_or_path = "embedded"
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    (tmp_path / "adapter" / "prompt_template.json").write_text(ALPACA_LORA.to_json())

    flags = ["--adapter", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "merged"), "--dtype", "float32"]
    done = subprocess.run([sys.executable, str(JOB), "merge", *flags], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "merged" / "run.json").read_text())["base_model"] == "embedded"

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    prompt = ALPACA_LORA.format({"instruction": "Name three fruits that grow on trees."})
    tokens = tokenizer(prompt, return_tensors="pt")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.dtype == torch.float32
    with torch.no_grad():
        found = merged(**tokens).logits
        expected = model.eval()(**tokens).logits
        with model.disable_adapter():
            assert (model(**tokens).logits - expected).abs().max() > 0.1
        assert (found - expected).abs().max() < 1e-4
        again = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(fetch_embedded(), dtype=torch.float32), tmp_path / "adapter"
        ).eval()
        assert (again(**tokens).logits - found).abs().max() < 1e-4
