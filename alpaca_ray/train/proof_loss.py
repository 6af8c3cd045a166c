"""Proof that the loss is the cross-entropy of the model's own logits. Run on every worker alike. Imports torch.

The loss is computed inside the language-model head (``train/loss.py``), which is right only where the model hands the
head's output on as it is, a soft cap apart. Some families do not: Granite and Cohere scale their logits afterwards.
No list of names can know the next one, so the head's output is held against the model's logits. Where they differ the
run takes the loss of whole logits, which costs memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from alpaca_ray.errors import TrainingError
from alpaca_ray.train.encode import IGNORE_INDEX, Sample


def check_loss(
    trainer: Any, forward: Callable[[dict[str, Any]], torch.Tensor], samples: Sequence[Sample], *, allowed: float
) -> dict[str, Any]:
    """Prove the trainer's summed loss on one batch, and choose where it is computed.

    Sets ``trainer.fuses_loss`` to false where the head's output is not the model's logits; which is so depends on the
    model's code alone, hence every worker decides alike.

    Args:
        trainer: an ``AlpacaTrainer``, its model in evaluation mode.
        forward: from a batch to the model's logits, (rows, tokens, vocabulary).
        samples: a few short ones; every token of theirs counts as learnt here.
        allowed: relative distance that rounding explains.

    Returns:
        ``loss_in_head``, whether the loss is computed there, and ``loss_distance``, how far it is from the
        cross-entropy of the logits, relatively.

    Raises:
        TrainingError: they differ.
    """
    learnt: list[Sample] = [{**sample, "labels": list(sample["input_ids"])} for sample in samples]
    batch = trainer._prepare_inputs(trainer.data_collator(learnt))
    head = trainer.loss_head()
    with _outputs_of(head) as seen:
        logits = forward({name: value for name, value in batch.items() if name != "labels"})
    expected = cross_entropy(logits, batch["labels"])
    if head is not None and not (seen and _is_same(seen[-1], logits, _softcap(trainer), allowed)):
        trainer.fuses_loss = False
    apart = _apart(trainer, batch, expected)
    if not apart <= allowed:
        raise TrainingError(
            f"the loss differs from the cross-entropy of the model's logits by {apart:.2g} (relative; {allowed:.2g} is "
            "rounding): this model cannot be trained so"
        )
    return {"loss_in_head": trainer.loss_head() is not None, "loss_distance": float(f"{apart:.3g}")}


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the summed cross-entropy of whole logits against the labels of the next tokens, in float64."""
    found = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).double(),
        labels[:, 1:].flatten().to(logits.device),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    return float(found.item())


def _apart(trainer: Any, batch: dict[str, Any], expected: float) -> float:
    model = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    found = float(trainer._token_loss(model, batch)[0].item())
    return abs(found - expected) / max(abs(expected), 1e-30)


def _softcap(trainer: Any) -> float | None:
    cap: float | None = getattr(trainer.model.config.get_text_config(), "final_logit_softcapping", None)
    return cap


def _is_same(output: torch.Tensor, logits: torch.Tensor, softcap: float | None, allowed: float) -> bool:
    expected = output.double()
    if softcap is not None:
        expected = torch.tanh(expected / softcap) * softcap
    found = logits.double()
    if expected.shape != found.shape:
        return False
    return bool((expected.to(found.device) - found).norm() <= allowed * found.norm())


@contextmanager
def _outputs_of(module: torch.nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Collect what a module returns inside the block; nothing where there is no module."""
    seen: list[torch.Tensor] = []
    if module is None:
        yield seen
        return
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
