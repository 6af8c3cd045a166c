"""A slotted key/value cache: each row of the running batch owns one slot, and slots 0 to B-1 are always the used ones.

Because used slots are contiguous, a decode step reads views of the cache, never copies. When a row leaves, the last row
moves into its slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_BLOCK = 256  # tokens by which the cache grows


@dataclass
class _Step:
    """What the forward pass under way does with the cache. ``positions`` is None in a prefill."""

    first_slot: int = 0
    rows: torch.Tensor | None = None  # [B]
    positions: torch.Tensor | None = None  # [B], where each row's new token goes
    length: int = 0  # tokens of the longest row, the new one included


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, ``[slots, heads, capacity, head size]``."""

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        slots, capacity = self._owner.slots, self._owner.capacity
        # Zeros, not empty memory: a masked position still takes part in 0 * value, and garbage may be NaN.
        self.keys = key_states.new_zeros(slots, key_states.shape[1], capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(slots, value_states.shape[1], capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new states; return all that the queries may attend to: in a prefill just the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        step = self._owner.step
        if step.positions is None:
            rows, tokens = key_states.shape[0], key_states.shape[2]
            slots = slice(step.first_slot, step.first_slot + rows)
            self.keys[slots, :, :tokens] = key_states
            self.values[slots, :, :tokens] = value_states
            return key_states, value_states
        self.keys[step.rows, :, step.positions] = key_states[:, :, 0]
        self.values[step.rows, :, step.positions] = value_states[:, :, 0]
        used = key_states.shape[0]
        return self.keys[:used, :, : step.length], self.values[:used, :, : step.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(0, self._owner.step.length - 1)

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The cache of a running batch.

    Args:
        layers: number of the model's layers.
        slots: rows that it can hold.
        limit: tokens that one row may hold at most.
    """

    def __init__(self, layers: int, slots: int, limit: int) -> None:
        self.slots = slots
        self.capacity = 0
        self.step = _Step()
        self._limit = limit
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def begin_prefill(self, first_slot: int, tokens: int) -> None:
        """Announce a pass over new rows, of up to ``tokens`` tokens, that go into the slots from ``first_slot``."""
        self._reserve(tokens)
        self.step = _Step(first_slot=first_slot)

    def begin_decode(self, positions: torch.Tensor, length: int) -> None:
        """Announce a pass of one token for each used slot; ``positions`` is [B], ``length`` their maximum plus one."""
        self._reserve(length)
        self.step = _Step(
            rows=torch.arange(len(positions), device=positions.device), positions=positions, length=length
        )

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of one slot into another."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[target, :, :tokens] = layer.keys[source, :, :tokens]
                layer.values[target, :, :tokens] = layer.values[source, :, :tokens]

    def release(self) -> None:
        """Give the memory back where the cache has grown beyond its first block; only while no slot is used."""
        if self.capacity > _BLOCK:
            self.capacity = 0
            for layer in self.layers:
                layer.keys = layer.values = None
                layer.is_initialized = False

    def _reserve(self, tokens: int) -> None:
        if tokens <= self.capacity:
            return
        self.capacity = min(self._limit, -(-tokens // _BLOCK) * _BLOCK)
        for layer in self.layers:
            if layer.is_initialized:
                for name in ("keys", "values"):
                    old = getattr(layer, name)
                    new = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                    new[:, :, : old.shape[2]] = old
                    setattr(layer, name, new)
