"""The tokenizer of a run, and how its batches are padded. Runs inside a worker."""

from __future__ import annotations

from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.models import load_tokenizer
from alpaca_ray.settings.train import TrainSettings

# What Stanford's trainer gives a tokenizer that lacks them.
_STANFORD_TOKENS = {"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


def build_tokenizer(settings: TrainSettings, source: str) -> Any:
    """Load the tokenizer of the model at ``source``, with Stanford's missing tokens added in full fine-tuning.

    Raises:
        ModelError: it cannot be loaded, or has no end token.
    """
    tokenizer = load_tokenizer(source, flag=settings.model_flag, cache_dir=settings.cache_dir)
    if settings.spoken == "Stanford" and settings.mode[0] == "full":
        missing = {name: token for name, token in _STANFORD_TOKENS.items() if getattr(tokenizer, name) is None}
        if missing:
            tokenizer.add_special_tokens(missing)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{settings.model_flag} {settings.model_name}: its tokenizer has no end token")
    return tokenizer


def own_size(settings: TrainSettings, source: str) -> int:
    """Return how many tokens the tokenizer at ``source`` has before any is added."""
    return len(load_tokenizer(source, flag=settings.model_flag, cache_dir=settings.cache_dir))


def padding(settings: TrainSettings, tokenizer: Any) -> tuple[int, str]:
    """Return the padding id and side: 0 on the left in Alpaca-LoRA's dialect, else the tokenizer's own on the right."""
    if settings.spoken == "Alpaca-LoRA":
        return 0, "left"
    pad = tokenizer.pad_token_id
    return (tokenizer.eos_token_id if pad is None else pad), "right"
