"""Which tensor of a base a tensor of a fine-tuned model came from. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from alpaca_ray.errors import ModelError
from alpaca_ray.export.weights import Spec

# What checkpoints of one family carry before their names, or leave out.
_PREFIXES = ("model.", "transformer.")
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
# Tensors with a row for each token: those may have grown.
_BY_TOKEN = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|embed_out|lm_head)\.(weight|bias)")


def counterpart(name: str, spec: Spec, base: Mapping[str, Spec], base_name: str) -> str:
    """Return the base's tensor that a tuned model's tensor is held against.

    The head of a model whose base ties it to the embedding is held against that.

    Raises:
        ModelError: there is none, or it is of another shape in more than its number of tokens.
    """
    names = [name, *(prefix + name for prefix in _PREFIXES), *(name.removeprefix(prefix) for prefix in _PREFIXES)]
    found = next((other for other in names if other in base), None)
    if found is None and name == _HEAD:
        found = next((other for other in base if other.endswith(_EMBEDDINGS)), None)
    if found is None:
        raise ModelError(f"tensor {name}: the base {base_name} has none of that name: is it what was fine-tuned?")
    there = base[found].shape
    grown = bool(_BY_TOKEN.fullmatch(name)) and there[1:] == spec.shape[1:] and len(there) == len(spec.shape)
    if there != spec.shape and not grown:
        raise ModelError(
            f"tensor {name}: has the shape {spec.shape}, in the base {base_name} {there}: is it what was fine-tuned?"
        )
    return found
