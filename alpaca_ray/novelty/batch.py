"""Instructions that arrive together: compared with each other as if they had come one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.compiled import compiled
from alpaca_ray.novelty.lanes import lcs_rows
from alpaca_ray.novelty.pool import empty_rows
from alpaca_ray.novelty.rouge import Scores, f1, f1_row, least_common
from alpaca_ray.novelty.search import MOST_SIMILAR, Found, best_of
from alpaca_ray.novelty.tokens import TokenLists


@dataclass(frozen=True)
class Neighbours:
    """Entries nearest to an instruction, best first, with their scores; and the mean over the pool where it is known.

    An entry's index counts on from the pool into the batch: the first that was kept of it follows the pool's last.
    """

    entries: NDArray[np.int64]
    scores: Scores
    average: float | None


_NONE = Neighbours(np.zeros(0, dtype=np.int64), np.zeros(0), None)


class Batch:
    """A batch, what the pool says of it, and the decisions that follow from both.

    Attributes:
        keep: whether each instruction is kept, bool, shape (batch,).
        before: how many of the batch were kept before each, int64, shape (batch,).
    """

    def __init__(self, tokens: TokenLists, found: Found, pool_lengths: NDArray[np.int64], threshold: float) -> None:
        """``found``: the pool's answer before any of the batch joined it; ``pool_lengths``: tokens of its entries."""
        self._lengths = tokens.lengths
        self._found = found
        self._pool_lengths = pool_lengths
        self._common = _within(tokens)
        self._best = self._pool_best()
        self.keep = np.zeros(len(tokens), dtype=np.bool_)
        self._nearest = np.full(len(tokens), -1, dtype=np.int64)
        _decide(self._lengths, self._common, threshold, self._best, self._nearest, self.keep)
        self._kept = np.flatnonzero(self.keep)
        self.before: NDArray[np.int64] = np.cumsum(self.keep) - self.keep

    def nearest_of_dropped(self, number: int) -> Neighbours:
        """Return the one nearest entry of an instruction that was dropped; nothing for one that was kept."""
        assert self._found.nearest is not None
        if self.keep[number]:
            return _NONE
        place = self._nearest[number]
        entry = self._found.nearest[number, 0] if place < 0 else len(self._pool_lengths) + self.before[place]
        return Neighbours(np.array([entry]), self._best[number : number + 1], None)

    def top(self, number: int) -> Neighbours:
        """Return the ten nearest entries; of equal scores the earlier first."""
        assert self._found.scores is not None
        assert self._found.nearest is not None
        inside = self._scores_within(number)
        entries = np.concatenate([self._found.nearest[number], len(self._pool_lengths) + np.arange(len(inside))])
        scores = np.concatenate([self._found.scores[number], inside])
        scores, entries = best_of(scores[None], entries[None], MOST_SIMILAR)
        there = entries[0] >= 0
        return Neighbours(entries[0][there], scores[0][there], None)

    def full(self, number: int) -> Neighbours:
        """Return the ten nearest entries, of equal scores the earlier first, and the mean over all."""
        assert self._found.rows is not None
        pool = len(self._pool_lengths)
        inside = self._scores_within(number)
        row = np.empty(pool + len(inside))
        f1_row(self._found.rows[number], self._lengths[number], self._pool_lengths, row[:pool])
        row[pool:] = inside
        if not len(row):
            return Neighbours(np.zeros(0, dtype=np.int64), row, 0.0)
        entries = _largest(row, min(MOST_SIMILAR, len(row)))
        return Neighbours(entries, row[entries], float(np.mean(row)))

    def _scores_within(self, number: int) -> Scores:
        """Return the scores with those of the batch that were kept before, in their order."""
        kept = self._kept[: self.before[number]]
        scores = np.empty(len(kept))
        f1_row(self._common[number, kept], self._lengths[number], self._lengths[kept], scores)
        return scores

    def _pool_best(self) -> Scores:
        """Return each instruction's best score with the pool, -1 where there is none to speak of."""
        if self._found.scores is not None:
            return self._found.scores[:, 0].copy()
        assert self._found.rows is not None
        best = np.full(len(self._lengths), -1.0)
        if len(self._pool_lengths):
            row = np.empty(len(self._pool_lengths))
            for number in range(len(best)):
                f1_row(self._found.rows[number], self._lengths[number], self._pool_lengths, row)
                best[number] = row.max()
        return best


def _within(tokens: TokenLists) -> NDArray[Any]:
    """Return LCS lengths of each list with each, shape (lists, lists)."""
    out = empty_rows(tokens, len(tokens))
    if len(tokens) > 1:
        # Numbered anew, so that tables are as large as the batch needs and not as the vocabulary is.
        distinct, flat = np.unique(tokens.flat, return_inverse=True)
        local = flat.astype(np.int32)
        lcs_rows(local, tokens.offsets, np.arange(len(tokens)), local, tokens.offsets, len(distinct) + 1, out)
    return out


@compiled
def _largest(row: Scores, count: int) -> NDArray[np.int64]:
    """Return the places of the ``count`` largest values, largest first; of equal ones the earlier first."""
    entries = np.zeros(count, dtype=np.int64)
    best = np.full(count, -1.0)
    least = -1.0
    for index in range(len(row)):
        if row[index] > least:
            place = count - 1
            while place > 0 and best[place - 1] < row[index]:
                best[place] = best[place - 1]
                entries[place] = entries[place - 1]
                place -= 1
            best[place] = row[index]
            entries[place] = index
            least = best[count - 1]
    return entries


@compiled
def _decide(
    lengths: NDArray[np.int64],
    common: NDArray[Any],
    threshold: float,
    best: Scores,
    nearest: NDArray[np.int64],
    keep: NDArray[np.bool_],
) -> None:
    """Decide one by one; ``best`` and ``nearest`` (-1: in the pool) go on from the pool to those kept of the batch."""
    kept = np.empty(len(lengths), dtype=np.int64)
    count = 0
    for number in range(len(lengths)):
        for place in range(count):
            other = kept[place]
            floor = max(threshold, best[number])
            if common[number, other] >= least_common(floor, lengths[number], lengths[other]):
                score = f1(common[number, other], lengths[number], lengths[other])
                if score > floor:
                    best[number] = score
                    nearest[number] = other
        keep[number] = not best[number] > threshold
        if keep[number]:
            kept[count] = number
            count += 1
