"""Merging through peft, with the model in memory once: for DoRA and whatever else is more than ``B @ A``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca_ray.errors import ModelError
from alpaca_ray.export.skeleton import skeleton_of
from alpaca_ray.models import load_model
from alpaca_ray.quiet import quiet_libraries

if TYPE_CHECKING:
    from alpaca_ray.export.model import Origin


def merge_whole(staging: Path, origin: Origin, *, dtype: str | None, max_shard_size: str) -> list[str]:
    """Write weights, ``config.json`` and generation config of base plus adapter, and return the files' names.

    Raises:
        ModelError: peft cannot load the adapter into the base, or cannot merge it.
    """
    adapter = origin.adapter
    assert adapter is not None
    quiet_libraries(use_gpu=False)
    from peft import PeftModel

    model = load_model(str(origin.folder), flag="--base_model", dtype=dtype or "auto")
    _grow(model, origin)
    skeleton = skeleton_of(origin.folder, flag="--base_model")
    ends = (skeleton.embedding, skeleton.head)
    if skeleton.tied and not adapter.config.get("ensure_weight_tying") and _touches(origin, ends):
        _untie(model)
    try:
        model = PeftModel.from_pretrained(model, adapter.folder, low_cpu_mem_usage=True)
        _merge_layers(model)
        model = model.merge_and_unload()
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"--adapter {adapter.folder}: peft cannot merge it into {origin.name}: {reason}") from error
    model.save_pretrained(staging, max_shard_size=max_shard_size)
    return [entry.name for entry in staging.iterdir()]


def _merge_layers(model: Any) -> None:
    """Merge layer by layer in float32, so that a sum is rounded once, and only one layer takes twice the memory."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            weight = module.get_base_layer().weight
            kind = weight.dtype
            module.float()
            module.merge(safe_merge=True)  # raises where a sum is not finite
            module.to(kind)
            if not torch.isfinite(module.get_base_layer().weight).all():
                raise ValueError(f"values too large for {kind}")


def _grow(model: Any, origin: Origin) -> None:
    """Grow the embeddings where the adapter was trained with added tokens and brings all of their rows."""
    assert origin.adapter is not None
    old = model.get_input_embeddings().weight.shape[0]
    rows = [
        spec.shape[0]
        for name, spec in origin.adapter.weights.items()
        if len(spec.shape) == 2 and name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
    ]
    if rows and max(rows) > old:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _touches(origin: Origin, modules: tuple[str, ...]) -> bool:
    assert origin.adapter is not None
    return any(f".{module}." in f"{name}." for name in origin.adapter.weights for module in modules if module)


def _untie(model: Any) -> None:
    """Give the head a tensor of its own: what the adapter does to one end must not change the other."""
    import torch

    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
