"""Loading a base model for generation: data type, device, quantisation, and what the engine can and cannot run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from alpaca_ray.errors import ModelError
from alpaca_ray.models import load_config, load_model, load_tokenizer

logger = logging.getLogger(__name__)

_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


@dataclass
class LoadedModel:
    """A causal language model ready for generation, with its tokenizer and limits."""

    model: Any
    tokenizer: Any
    eos: frozenset[int]
    max_model_len: int
    vocabulary: int


def load_for_generation(
    name: str, *, dtype: str = "auto", load_8bit: bool = False, max_model_len: int | None = None
) -> LoadedModel:
    """Load a base model.

    Args:
        name: hub id, path or ``embedded``.
        dtype: ``auto`` (the checkpoint's, or what this machine computes fastest), ``bfloat16`` or ``float32``.
        load_8bit: quantise linear layers to 8 bits with bitsandbytes.
        max_model_len: tokens of prompt and answer together; None: what the model was made for.

    Raises:
        ModelError: it cannot be loaded, or its attention is of a kind that this engine does not run.
    """

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = load_config(name, flag="base_model").get_text_config()
    limit = _length_limit(name, config, max_model_len)
    options: dict[str, Any] = {"dtype": _torch_dtype(dtype, getattr(config, "dtype", None), device)}
    if load_8bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        options["device_map"] = {"": device}
    model = load_model(name, flag="base_model", **options)
    if not load_8bit:
        model = model.to(device)
    model.requires_grad_(False)
    model.eval()
    tokenizer = load_tokenizer(name, flag="base_model")
    vocabulary = model.get_input_embeddings().num_embeddings
    return LoadedModel(model, tokenizer, _eos_tokens(model, tokenizer), limit, vocabulary)


def fast_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 faster than in float32."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _torch_dtype(dtype: str, checkpoint: torch.dtype | None, device: str) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    if checkpoint in (torch.bfloat16, torch.float16) and device == "cpu":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return checkpoint or torch.float32


def _length_limit(name: str, config: Any, wanted: int | None) -> int:
    """Return how many tokens a row may have; a window that the cache does not model bounds it."""
    limit = getattr(config, "max_position_embeddings", None) or wanted
    if limit is None:
        raise ModelError(f"base_model {name}: its config gives no maximum length: set max_model_len")
    if wanted and wanted > limit:
        raise ModelError(f"max_model_len {wanted}: {name} was made for at most {limit} tokens")
    limit = wanted or limit
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not getattr(config, "layer_types", None) and getattr(config, "sliding_window", None):
        kinds.add("sliding_attention")
    unknown = kinds - {"full_attention", *_WINDOWS}
    if unknown:
        raise ModelError(f"base_model {name}: layers of the kind {sorted(unknown)[0]!r} are not supported")
    for kind, field in _WINDOWS.items():
        window = getattr(config, field, None)
        if kind in kinds and window and window < limit:
            logger.warning("%s: max_model_len is %d, the model's %s", name, window, field.replace("_", " "))
            limit = window
    return int(limit)


def _eos_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    tokens = set(found if isinstance(found, list) else [found]) | {tokenizer.eos_token_id}
    return frozenset(token for token in tokens if token is not None)
