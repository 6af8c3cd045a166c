"""The largest forward pass of a run, from its samples and the order in which they come. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_ray.train.encode import IGNORE_INDEX, Sample
from alpaca_ray.train.plan import Plan


@dataclass(frozen=True)
class Batch:
    """The largest forward pass: its shape, and the positions for which the head is computed.

    Attributes:
        lengths: tokens of each sample in a packed row; empty where it holds one.
    """

    rows: int
    tokens: int
    learnt: int
    lengths: tuple[int, ...] = ()


def largest_batch(samples: Sequence[Sample], plan: Plan, *, packed: bool, group_by_length: bool, seed: int) -> Batch:
    """Return the largest forward pass of the first epochs that any worker takes."""
    from alpaca_ray.train.order import Batches

    sizes = [len(sample["input_ids"]) for sample in samples]
    learnt = [sum(label != IGNORE_INDEX for label in sample["labels"][1:]) for sample in samples]
    found = Batch(1, 1, 1)
    for rank in range(plan.workers):
        batches = Batches(
            len(samples),
            micro_batch=plan.micro_batch,
            step=plan.step_samples,
            workers=plan.workers,
            rank=rank,
            seed=seed,
            lengths=sizes if group_by_length else None,
        )
        for epoch in range(3):
            batches.set_epoch(epoch)
            for batch in batches:
                if not batch:
                    continue
                lengths: tuple[int, ...] = ()
                if packed:
                    lengths = tuple(sizes[index] for index in batch)
                    shape = (1, sum(lengths))
                    heads = sum(learnt[index] for index in batch)
                else:
                    longest = max(sizes[index] for index in batch)
                    prompt = min(sizes[index] - learnt[index] for index in batch)
                    shape, heads = (len(batch), longest), longest - prompt
                if math.prod(shape) > found.rows * found.tokens:
                    found = Batch(*shape, max(1, heads, found.learnt), lengths)
    return found
