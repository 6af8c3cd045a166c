"""What a pool is asked for a batch of instructions, and what it answers: in this process, or over shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.pool import RougePool
from alpaca_ray.novelty.rouge import Scores
from alpaca_ray.novelty.tokens import TokenLists

Stats = Literal["full", "top", "none"]
MOST_SIMILAR = 10
# Scores below the one that is looked for are cheap to rule out, so the ten nearest are looked for from above.
_FLOORS = (0.6, 0.45, 0.35, 0.25, -1.0)


@dataclass(frozen=True)
class Found:
    """What a pool says of a batch. With ``full`` statistics ``rows``, else the nearest entries.

    Attributes:
        rows: LCS lengths with every entry in the order of the pool, uint8 or int32, shape (queries, entries).
        scores: best scores, best first, shape (queries, k); -1 where there are fewer.
        nearest: the entries that have them, shape (queries, k); of equal scores the earlier entry first.
    """

    rows: NDArray[Any] | None = None
    scores: Scores | None = None
    nearest: NDArray[np.int64] | None = None


class Searcher(Protocol):
    """A pool that grows by batches."""

    def search(self, additions: TokenLists, queries: TokenLists) -> Found:
        """Add entries to the pool, then answer for queries against all of it."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class LocalSearcher:
    """A pool in this process; also what a shard is."""

    def __init__(self, stats: Stats, threshold: float, *, workers: int = -1) -> None:
        """Make one over an empty pool. ``threshold``: with ``none``, only scores above it are looked for."""
        self._stats = stats
        self._threshold = threshold
        self.pool = RougePool(workers=workers)

    def search(self, additions: TokenLists, queries: TokenLists) -> Found:
        """Add entries, then answer for queries."""
        self.pool.add(additions)
        if self._stats == "full":
            return Found(rows=self.pool.rows(queries))
        if self._stats == "none":
            scores, nearest = self.pool.nearest(queries, 1, self._threshold)
        else:
            scores, nearest = self._top(queries)
        return Found(scores=scores, nearest=nearest)

    def close(self) -> None:
        """Do nothing: the pool goes with this object."""

    def _top(self, queries: TokenLists) -> tuple[Scores, NDArray[np.int64]]:
        scores = np.full((len(queries), MOST_SIMILAR), -1.0)
        nearest = np.full((len(queries), MOST_SIMILAR), -1, dtype=np.int64)
        open_ = np.arange(len(queries))
        for floor in _FLOORS:
            if len(open_):
                scores[open_], nearest[open_] = self.pool.nearest(queries.select(open_), MOST_SIMILAR, floor)
                open_ = open_[nearest[open_, -1] < 0]
        return scores, nearest


def best_of(scores: Scores, nearest: NDArray[np.int64], k: int) -> tuple[Scores, NDArray[np.int64]]:
    """Return the ``k`` best of each row: by score, then the earlier entry; missing ones (-1) last."""
    order = np.lexsort((nearest, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(nearest, order, axis=1)
