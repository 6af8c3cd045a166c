"""Adapters with weights that matter, made by peft itself, and what two models answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

# Every token of the tiny tokenizer once, in rows.
TOKENS = torch.arange(512).reshape(8, 64)


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options}).eval()


def make_adapter(base: Path, folder: Path, **config: Any) -> Path:
    """Write an adapter of ``base`` whose every weight is random: a new one's B is zero, and would change nothing."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(load(base), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # DoRA divides by the norm of its weights, so its magnitudes stay near what they are.
                parameter.add_(torch.randn_like(parameter) * (0.02 if "magnitude" in name else 0.2))
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = str(base)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.no_grad()
def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """Return logits ``(8, 64, vocabulary)`` of a model, or of base plus adapter as peft computes them."""
    model = load(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    return model(TOKENS).logits


def break_byte(file: Path, at: int = -5) -> None:
    """Change one byte of a file, counted from its end."""
    content = bytearray(file.read_bytes())
    content[at] ^= 0x11
    file.write_bytes(content)
