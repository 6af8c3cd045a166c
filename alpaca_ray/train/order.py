"""In which order, and in which batches, the samples of an epoch are seen. Pure.

The order depends on the seed and the epoch alone, never on the number of workers: the same samples form the same steps
on any number of them. Each sample is seen exactly once an epoch: a last, smaller step is spread over the workers as
evenly as it goes, and a worker without a sample takes an empty batch (its loss has no weight).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_GROUPS = 50  # batches whose samples are sorted by length together, as transformers' LengthGroupedSampler does


def epoch_order(
    count: int, *, epoch: int, seed: int, lengths: Sequence[int] | None = None, batch: int = 1
) -> list[int]:
    """Return the sample indices of an epoch.

    With ``lengths``, samples of like length come into the same ``batch``, and the longest one first of all, so that a
    lack of memory shows at once.
    """
    order = list(range(count))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    if not lengths:
        return order
    size = max(1, min(count // (batch * 4), _GROUPS)) * batch
    groups = [sorted(order[i : i + size], key=lambda k: -lengths[k]) for i in range(0, count, size)]
    longest = max(groups, key=lambda group: lengths[group[0]])
    groups[0][0], longest[0] = longest[0], groups[0][0]
    return [index for group in groups for index in group]


def split_step(indices: Sequence[int], *, micro_batch: int, workers: int, rank: int) -> list[list[int]]:
    """Return the micro-batches that one worker takes of a step's samples; every worker gets the same number of them."""
    passes = -(-len(indices) // (micro_batch * workers))
    slots = passes * workers
    small, larger = divmod(len(indices), slots)
    batches: list[list[int]] = []
    start = 0
    for slot in range(slots):
        size = small + (slot < larger)
        if slot % workers == rank:
            batches.append(list(indices[start : start + size]))
        start += size
    return batches


class Batches:
    """The micro-batches of one worker over an epoch: a batch sampler for torch's DataLoader.

    Every ``step`` samples (over all workers; one micro-batch of each if not given) make a step. Each worker takes the
    same number of micro-batches for it, smaller or empty ones where it does not divide.
    """

    def __init__(
        self,
        count: int,
        *,
        micro_batch: int,
        step: int | None = None,
        workers: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._count = count
        self._micro_batch, self._workers, self._rank = micro_batch, workers, rank
        self._step = step or micro_batch * workers
        self._seed, self._shuffle, self._lengths = seed, shuffle, lengths
        self._epoch = 0

    @property
    def batch_sampler(self) -> Batches:
        """Itself: Trainer looks here, as inside accelerate's wrappers, for the sampler whose epoch it sets."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self._epoch = epoch

    def of_step(self, step: int) -> list[int]:
        """Return the samples of an optimiser step, over all workers; steps count from 1, through all epochs."""
        epoch, number = divmod(step - 1, -(-self._count // self._step))
        order = list(range(self._count))
        if self._shuffle:
            order = epoch_order(self._count, epoch=epoch, seed=self._seed, lengths=self._lengths, batch=self._step)
        return order[number * self._step : (number + 1) * self._step]

    def __len__(self) -> int:
        whole, rest = divmod(self._count, self._step)
        slot = self._micro_batch * self._workers
        return whole * -(-self._step // slot) + -(-rest // slot)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self._count))
        if self._shuffle:
            order = epoch_order(
                self._count, epoch=self._epoch, seed=self._seed, lengths=self._lengths, batch=self._step
            )
        for start in range(0, self._count, self._step):
            yield from split_step(
                order[start : start + self._step],
                micro_batch=self._micro_batch,
                workers=self._workers,
                rank=self._rank,
            )
