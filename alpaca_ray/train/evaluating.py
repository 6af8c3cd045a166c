"""A model in evaluation mode for a while. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch a model to evaluation, and back.

    bitsandbytes' 4-bit layers stay in training mode, which makes no difference to what they compute: in evaluation on
    the CPU they repack their weights for inference for good, which fails for narrow layers and is no form to train in.
    """
    was_training = model.training
    model.eval()
    for part in model.modules():
        if type(part).__name__ in ("Linear4bit", "LinearNF4", "LinearFP4"):
            part.training = True
    try:
        yield
    finally:
        model.train(was_training)
