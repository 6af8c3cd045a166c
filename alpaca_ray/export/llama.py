"""Meta's own layout of a Llama: names, row order of queries and keys, and ``params.json``. Pure.

Source: facebookresearch/llama, ``model.py``: its rotary embedding turns neighbouring rows (0 and 1, 2 and 3, ...) of
each head as pairs; Hugging Face's turns row i with row i + half. The rows of ``wq`` and ``wk`` are ordered accordingly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alpaca_ray.errors import ModelError

# Those of a layer, and those of the whole model, each by Hugging Face's name.
_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
# Multiples that Meta's models use, then finer ones; and its factor of the wider feed-forward layers.
_MULTIPLES = (256, 1024, 4096, 512, 128, 64, 32, 16, 8, 4, 2, 1)
_FACTORS = (None, 1.3)
# Meta's code knows this one way of stretching positions (Llama 3.1), with these figures built in, but for the factor.
_SCALED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Check that Meta's code can run a model.

    Raises:
        ModelError: it is no Llama, or one with something that Meta's layout has no place for.
    """
    if config.get("model_type") != "llama":
        raise ModelError(
            f"--model {name}: is of the architecture {config.get('model_type')}; the original state dict exists for "
            "Llama only"
        )
    missing = next((key for key in _NEEDED if not isinstance(config.get(key), int | float)), None)
    if missing:
        raise ModelError(f"--model {name}: its config.json gives no {missing}")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    extra = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "head_dim": config.get("head_dim") not in (None, width // heads),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
    }
    odd = next((key for key, is_odd in extra.items() if is_odd), None)
    if odd:
        raise ModelError(f"--model {name}: {odd}={config[odd]} has no place in the original Llama's layout")
    kind = rope(config).get("rope_type", "default")
    fixed = {key: rope(config).get(key) for key in _SCALED}
    if kind not in ("default", "llama3") or (kind == "llama3" and fixed != _SCALED):
        raise ModelError(f"--model {name}: its rotary embedding ({kind}) has no place in the original Llama's layout")


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's rotary parameters, also those of transformers before version 5."""
    old = dict(config.get("rope_scaling") or {})
    if "type" in old:
        old.setdefault("rope_type", old.pop("type"))
    return {"rope_theta": config.get("rope_theta", 10000.0), **old, **(config.get("rope_parameters") or {})}


def params(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``params.json``."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    multiple, factor = feed_forward(width, config["intermediate_size"])
    found: dict[str, Any] = {
        "dim": width,
        "multiple_of": multiple,
        "n_heads": heads,
        "n_layers": config["num_hidden_layers"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
    }
    if factor is not None:
        found["ffn_dim_multiplier"] = factor
    if config.get("num_key_value_heads") not in (None, heads):
        found["n_kv_heads"] = config["num_key_value_heads"]
    rotary = rope(config)
    if rotary["rope_theta"] != 10000.0:
        found["rope_theta"] = rotary["rope_theta"]
    if rotary.get("rope_type") == "llama3":
        found |= {"use_scaled_rope": True, "rope_scaling_factor": rotary["factor"]}
    return found


def feed_forward(width: int, hidden: int) -> tuple[int, float | None]:
    """Return ``multiple_of`` and ``ffn_dim_multiplier`` from which Meta's code computes the feed-forward width."""
    exact = (hidden + 0.5) / int(8 * width / 3)
    for factor in (*_FACTORS, exact):
        for multiple in _MULTIPLES:
            if feed_forward_width(width, multiple, factor) == hidden:
                return multiple, factor
    raise AssertionError(f"no factor gives {hidden} for {width}")  # the exact one does, at multiples of 1


def feed_forward_width(width: int, multiple: int, factor: float | None) -> int:
    """Return the feed-forward width as Meta's code computes it."""
    hidden = int(2 * (4 * width) / 3)
    if factor is not None:
        hidden = int(factor * hidden)
    return multiple * math.ceil(hidden / multiple)


def names(tensors: Iterable[str], config: Mapping[str, Any], model: str) -> dict[str, str]:
    """Return, for each name of Meta's layout, the tensor of a checkpoint that it is.

    Tied embeddings are written under both names, since Meta's code has no tying.

    Raises:
        ModelError: the checkpoint holds a tensor that has no place, or lacks one.
    """
    found = {}
    for tensor in tensors:
        match = _LAYER_NAME.fullmatch(tensor)
        if match and match[2] in _LAYER:
            found[f"layers.{match[1]}.{_LAYER[match[2]]}.weight"] = tensor
        elif tensor.removesuffix(".weight") in _WHOLE:
            found[f"{_WHOLE[tensor.removesuffix('.weight')]}.weight"] = tensor
        elif not tensor.endswith("rotary_emb.inv_freq"):  # old checkpoints carry these constants
            raise ModelError(f"--model {model}: tensor {tensor} has no place in the original Llama's layout")
    if config.get("tie_word_embeddings") and "tok_embeddings.weight" in found:
        found["output.weight"] = found["tok_embeddings.weight"]
    wanted = [f"{name}.weight" for name in _WHOLE.values()]
    wanted += [
        f"layers.{layer}.{name}.weight" for layer in range(config["num_hidden_layers"]) for name in _LAYER.values()
    ]
    for name in wanted:
        if name not in found:
            raise ModelError(f"--model {model}: the checkpoint has no tensor for {name}")
    return {name: found[name] for name in wanted}


def rotary_heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Return the number of heads whose rows of a tensor are reordered; None where they are not."""
    if name.endswith("attention.wq.weight"):
        return int(config["num_attention_heads"])
    if name.endswith("attention.wk.weight"):
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def to_neighbours(weight: Any, heads: int) -> Any:
    """Return a weight ``(heads * size, in)`` whose rows i and i + half of each head have become neighbours."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)
