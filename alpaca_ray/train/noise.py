"""NEFTune: noise on the embeddings of what is learnt, none in validation. Imports torch.

Jain et al., 2023, arXiv:2310.05914: each element of a sample's embeddings gets uniform noise in ±alpha / sqrt(L d),
with L the sample's tokens and d the embedding's width. transformers' own hook takes L from the shape of the batch: a
packed row of eight samples would get about a third of the noise, and a short sample beside a long one too little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback


def sample_lengths(batch: Mapping[str, Any]) -> torch.Tensor:
    """Return, for each token of a batch, how many tokens its sample has: (rows, tokens), or (rows, 1) for all alike."""
    positions, mask = batch.get("position_ids"), batch.get("attention_mask")
    if positions is not None:  # a packed row: positions begin anew at each sample
        owner = (positions[0] == 0).cumsum(0)
        return torch.bincount(owner)[owner][None]
    if mask is not None and mask.dim() == 2:
        return mask.sum(1, keepdim=True)
    ids = batch["input_ids"]
    return torch.full((ids.shape[0], 1), ids.shape[1], device=ids.device)


class EmbeddingNoise(TrainerCallback):
    """Adds the noise from the first step to the last; afterwards nothing of it is left on the model.

    ``see`` is called with each batch before the model is, and tells the embedding where samples begin and end. Draws
    from torch's generator of the device, so a resume repeats it.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        """Prepare for a model without its PEFT wrapper; ``alpha`` is the paper's (5 to 15)."""
        self._embedding, self._alpha = model.get_input_embeddings(), alpha
        self._lengths: torch.Tensor | None = None
        self._hook: Any = None

    def see(self, batch: Mapping[str, Any]) -> None:
        """Remember the lengths of a batch's samples."""
        self._lengths = sample_lengths(batch)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hang the noise behind the embedding."""
        self._hook = self._embedding.register_forward_hook(self._add)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take it off again, before the model is published."""
        self._hook.remove()

    def _add(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self._lengths is None:
            return output
        reach = self._alpha / (self._lengths.to(output.device) * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * reach[..., None].to(output.dtype)
