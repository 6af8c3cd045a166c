"""Two kinds of forward pass over a slotted cache: prompts of new rows, and one token of every running row."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from alpaca_ray.serve.engine.adapters import AdapterBank
from alpaca_ray.serve.engine.cache import SlotCache
from alpaca_ray.serve.engine.loading import LoadedModel


class ModelRunner:
    """Runs a base model with its adapters; knows tokens and slots, nothing of requests."""

    def __init__(self, loaded: LoadedModel, slots: int) -> None:
        self.bank = AdapterBank(loaded.model)
        config = loaded.model.config.get_text_config()
        self.cache = SlotCache(config.num_hidden_layers, slots, loaded.max_model_len)
        self._device = loaded.model.device
        self._dtype = loaded.model.dtype
        self._eager = config._attn_implementation == "eager"  # adds its mask instead of reading truth values
        self._can_select = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters

    def prefill(self, prompts: Sequence[Sequence[int]], keys: Sequence[str | None], first_slot: int) -> torch.Tensor:
        """Run prompts into the slots from ``first_slot`` on and return the logits behind each, [rows, vocabulary].

        Prompts are padded on the right: under a causal mask no token sees what stands behind it, so that no explicit
        mask is needed.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        positions = torch.arange(longest, device=self._device).expand(len(prompts), -1)
        last = torch.tensor([length - 1 for length in lengths], device=self._device)
        # Only the last position of each row is wanted, and the vocabulary's projection is the widest of all.
        keep, which = torch.unique(last, return_inverse=True)
        select: dict[str, Any] = {"logits_to_keep": keep} if self._can_select else {}
        self.cache.begin_prefill(first_slot, longest)
        logits = self._forward(keys, tokens.to(self._device), positions, None, **select)
        return logits[torch.arange(len(prompts), device=self._device), which if self._can_select else last]

    def decode(self, tokens: Sequence[int], positions: Sequence[int], keys: Sequence[str | None]) -> torch.Tensor:
        """Run one token of each used slot, slot i at ``positions[i]``, and return the logits, [rows, vocabulary]."""
        where = torch.tensor(positions, device=self._device)
        length = max(positions) + 1
        seen = torch.arange(length, device=self._device) <= where[:, None]
        mask = seen[:, None, None, :]
        if self._eager:
            mask = torch.zeros(mask.shape, dtype=self._dtype, device=self._device).masked_fill(
                ~mask, torch.finfo(self._dtype).min
            )
        self.cache.begin_decode(where, length)
        return self._forward(keys, torch.tensor(tokens, device=self._device)[:, None], where[:, None], mask)[:, -1]

    def _forward(
        self,
        keys: Sequence[str | None],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        **select: Any,
    ) -> torch.Tensor:
        output = self.bank.forward(
            keys,
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **select,
        )
        return output.logits
