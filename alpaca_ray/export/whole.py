"""Merging through peft, with the model in memory once: for adapters that are more than ``B @ A`` on linear layers."""

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
    kind = model.dtype
    _grow(model, origin)
    skeleton = skeleton_of(origin.folder, flag="--base_model")
    ends = (skeleton.embedding, skeleton.head)
    if skeleton.tied and not adapter.config.get("ensure_weight_tying") and _touches(origin, ends):
        _untie(model)
    try:
        model = PeftModel.from_pretrained(model, adapter.folder, low_cpu_mem_usage=True)
        # In place, of a float32 change to weights of any type: rounded once, and no second copy of the model.
        # What the adapter brings whole is in float32, and takes the model's type.
        model = model.merge_and_unload().to(kind)
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"--adapter {adapter.folder}: peft cannot merge it into {origin.name}: {reason}") from error
    _check_finite(model, adapter.folder)
    model.save_pretrained(staging, max_shard_size=max_shard_size)
    return [entry.name for entry in staging.iterdir()]


def _check_finite(model: Any, adapter: Path) -> None:
    import torch

    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"--adapter {adapter}: merged, {name} holds values that are no numbers or too large for "
                f"{str(parameter.dtype).removeprefix('torch.')}: give --dtype bfloat16 or float32"
            )


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
