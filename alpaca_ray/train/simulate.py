"""The memory of one training step, from running it without any values: shapes alone, on torch's fake tensors.

A model of any size is built from its configuration, given its adapter, and taken through forward and backward pass in
seconds; nothing of its size is ever allocated. Each storage that an operation makes is counted from its creation to its
end, rounded to the 512 bytes that CUDA's caching allocator hands out, which is what ``torch.cuda.max_memory_allocated``
counts. Imports torch.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from alpaca_ray.train.loss import head_of, loss_in_head

_GRAIN = 512
_UNMASKED = "alpaca_simulated"


@dataclass(frozen=True)
class Step:
    """Bytes of a simulated step of one worker that holds the whole model.

    Attributes:
        weights: of all weights, and of buffers.
        gradients: of the trained weights.
        passes: the most that forward and backward pass hold beside weights and earlier gradients: activations, casts of
            weights, temporary results, and this pass's own gradients as they come.
    """

    weights: int
    gradients: int
    passes: int


class Ledger(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside the block. ``now`` and ``peak`` are in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result

    def add(self, value: torch.Tensor) -> None:
        """Count a tensor's storage, once, until it ends."""
        storage = value.untyped_storage()
        key = id(storage)
        if key in self._known and self._known[key]() is storage:
            return
        size = -(-storage.nbytes() // _GRAIN) * _GRAIN
        self.now += size
        self.peak = max(self.peak, self.now)

        def end(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, end)


def simulate(
    model: Any,
    *,
    rows: int,
    tokens: int,
    learnt: int,
    mask: Literal["none", "blocks", "padding"],
    autocast: torch.dtype | None,
    checkpointing: bool,
    accumulates: bool,
) -> Step:
    """Take a model that lies on the meta device through forward and backward pass. Changes the model for good.

    Args:
        model: a causal language model, adapter included; with the types that its weights have in the run.
        rows, tokens: shape of the batch; a packed one has one row.
        learnt: positions for which the head is computed.
        mask: ``none`` in a packed row whose borders go beside it, ``blocks`` in one of a family that needs them as a
            mask, ``padding`` in a padded batch.
        autocast: the type of the products, where it is not the weights'.
        checkpointing: whether activations are computed again in the backward pass.
        accumulates: whether gradients of an earlier pass are there already.
    """
    if mask == "none":  # transformers makes one where it cannot look at values
        AttentionInterface.register(_UNMASKED, sdpa_attention_forward)
        AttentionMaskInterface.register(_UNMASKED, lambda *_, **__: None)
        model.set_attn_implementation(_UNMASKED)
    fakes = FakeTensorMode()
    values = _make_fake(model, fakes)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trained = [part for part in model.parameters() if part.requires_grad]
    with fakes, Ledger() as ledger:
        for value in values:
            ledger.add(value)
        weights = ledger.now
        batch: dict[str, Any] = {
            "input_ids": torch.zeros(rows, tokens, dtype=torch.long),
            "position_ids": torch.arange(tokens).expand(rows, tokens),
        }
        if mask == "blocks":
            batch["attention_mask"] = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        elif mask == "padding":
            batch["attention_mask"] = torch.ones(rows, tokens, dtype=torch.long)
        keep, targets = torch.arange(learnt), torch.zeros(rows, learnt, dtype=torch.long)
        head = head_of(base)
        cast = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
        for _ in range(2 if accumulates else 1):
            before, ledger.peak = ledger.now, ledger.now
            with cast, _loss(base, head, targets):
                result = model(**batch, logits_to_keep=keep).logits
            if head is None:
                result = torch.nn.functional.cross_entropy(result.float().flatten(0, 1), targets.flatten())
            result.backward()
            del result
        gradients = sum(part.grad.untyped_storage().nbytes() for part in trained if part.grad is not None)
        return Step(weights, gradients, ledger.peak - before)


@contextlib.contextmanager
def _loss(base: Any, head: Any, targets: torch.Tensor) -> Iterator[None]:
    if head is None:
        yield
        return
    with loss_in_head(base, head, targets, 0.0):
        yield


def _make_fake(model: Any, fakes: FakeTensorMode) -> list[torch.Tensor]:
    """Replace each parameter and buffer by a fake one that claims to be on the CPU; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                if id(value) not in made:
                    fake: torch.Tensor = FakeTensor(fakes, value.detach().to("meta"), torch.device("cpu"))
                    if isinstance(value, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
                    made[id(value)] = fake
                held[name] = made[id(value)]
    return list(made.values())
