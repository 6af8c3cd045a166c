"""Which parts of a model a text goes through: those alone are trained, and a picture's stay as they are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def beside_text(model: Any) -> list[str]:
    """Return the paths of the parts that no text goes through: the vision tower of Gemma 3 and its projector, say.

    They get no gradient from instruction records, which DDP takes for an error, and an adapter there would be saved
    untrained. Empty for a model of text alone.

    Args:
        model: a causal language model, also one wrapped by peft; the paths are those of the model inside.
    """
    base = _base(model)
    if base.config.get_text_config() is base.config:
        return []
    return list(_outside(base, {id(part) for part in _text_parts(base)}, ""))


def freeze_beside_text(model: Any) -> list[str]:
    """Make the parts that no text goes through untrainable, and return their paths."""
    beside = beside_text(model)
    if beside:
        inside = text_parameters(model)
        for part in model.parameters():
            if id(part) not in inside:
                part.requires_grad_(False)
    return beside


def text_parameters(model: Any) -> set[int]:
    """Return the ``id`` of each parameter that a text goes through."""
    base = _base(model)
    if base.config.get_text_config() is base.config:
        return {id(weight) for weight in base.parameters()}
    return {id(weight) for part in _text_parts(base) for weight in part.parameters()}


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _text_parts(base: Any) -> list[Any]:
    return [part for part in (base.get_decoder(), base.get_output_embeddings()) if part is not None]


def _outside(part: Any, used: set[int], path: str) -> Iterator[str]:
    for name, child in part.named_children():
        place = f"{path}{name}"
        if id(child) in used:
            continue
        if any(id(inner) in used for inner in child.modules()):
            yield from _outside(child, used, f"{place}.")
        elif any(True for _ in child.parameters()):
            yield place
