"""The memory of one training step, from running it without any values: shapes alone, on torch's fake tensors.

A model of any size is built from its configuration, given its adapter, and taken through forward and backward pass in
seconds; nothing of its size is ever allocated. Each storage that an operation makes is counted from its creation to its
end, rounded to the 512 bytes that CUDA's caching allocator hands out, which is what ``torch.cuda.max_memory_allocated``
counts. Imports torch.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from alpaca_ray.train.attention import by_sample, lowered, own_masks
from alpaca_ray.train.loss import head_of, loss_in_head

_GRAIN = 512
_NAME = "alpaca_simulated"

# How the samples of a batch are kept apart: by ``train/attention.py``, with or without its GPU kernel; by flash
# attention's package; by the model's own attention, with a mask of the whole row, or of what is padding.
Attention = Literal["own", "own kernel", "kernel", "mask", "padding"]


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
    lengths: Sequence[int],
    attention: Attention,
    autocast: torch.dtype | None,
    checkpointing: bool,
    accumulates: bool,
) -> Step:
    """Take a model that lies on the meta device through forward and backward pass. Changes the model for good.

    Args:
        model: a causal language model, adapter included; with the types that its weights have in the run.
        rows, tokens: shape of the batch; a packed one has one row.
        learnt: positions for which the head is computed.
        lengths: tokens of each sample of a packed row.
        attention: how its samples are kept apart.
        autocast: the type of the products, where it is not the weights'.
        checkpointing: whether activations are computed again in the backward pass.
        accumulates: whether gradients of an earlier pass are there already.
    """
    if attention not in ("mask", "padding"):  # the library would make a mask where it cannot look at values
        _replace_attention(model, lengths, attention)
    fakes = FakeTensorMode()
    values = _make_fake(model, fakes)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trained = [part for part in model.parameters() if part.requires_grad]
    trims = "logits_to_keep" in inspect.signature(base.forward).parameters
    with own_masks(), fakes, Ledger() as ledger:
        for value in values:
            ledger.add(value)
        weights = ledger.now
        batch: dict[str, Any] = {
            "input_ids": torch.zeros(rows, tokens, dtype=torch.long),
            "position_ids": torch.arange(tokens).expand(rows, tokens),
        }
        if attention == "mask":
            adds = base.config._attn_implementation == "eager"  # which adds it to the scores
            kind = base.get_input_embeddings().weight.dtype if adds else torch.bool
            batch["attention_mask"] = torch.ones(1, 1, tokens, tokens, dtype=kind)
        elif attention == "padding":
            batch["attention_mask"] = torch.ones(rows, tokens, dtype=torch.long)
        keep, targets = torch.arange(learnt), torch.zeros(rows, learnt, dtype=torch.long)
        if trims:
            batch["logits_to_keep"] = keep
        head = head_of(base) if trims else None
        cast = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
        for _ in range(2 if accumulates else 1):
            before, ledger.peak = ledger.now, ledger.now
            with cast, _loss(base, head, targets):
                result = model(**batch).logits
            if head is None:
                result = result if trims else result[:, keep]
                result = torch.nn.functional.cross_entropy(result.float().flatten(0, 1), targets.flatten())
            result.backward()
            del result
        gradients = sum(part.grad.untyped_storage().nbytes() for part in trained if part.grad is not None)
        return Step(weights, gradients, ledger.peak - before)


def _replace_attention(model: Any, lengths: Sequence[int], attention: Attention) -> None:
    """Give the model what takes a packed row's memory without looking at its borders, which are values."""

    def attend(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = lowered(query, key, value)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if attention == "kernel" or (attention == "own kernel" and softcap is None and not dropout):
            # torch's kernel over the whole row keeps as much as one that knows the borders.
            return sdpa_attention_forward(module, query, key, value, None, dropout=dropout, scaling=scaling)
        return by_sample(query, key, value, lengths, scaling, dropout, sliding_window, softcap), None

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, lambda *_, **__: None)
    model.set_attn_implementation(_NAME)


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
