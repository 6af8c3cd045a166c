"""A pool split over shards: entry ``i`` of the pool lies in shard ``i mod N``, and the answers are put together again.

Shards return LCS lengths or exact scores of single pairs, which do not depend on what else a shard holds. Everything
that does (order, mean, which of the nearest comes first) is worked out from all of them in one place, so that the
result is the same to the last bit at any number of shards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from alpaca_ray.errors import AlpacaRayError, ClusterError
from alpaca_ray.novelty.search import MOST_SIMILAR, Found, Stats, best_of
from alpaca_ray.novelty.tokens import TokenLists

_ATTEMPTS = 3


class ShardLost(AlpacaRayError, RuntimeError):  # noqa: N818 - an event that is dealt with
    """A shard died; what it held can be given to a new one."""


class Shard(Protocol):
    """One shard, which may live in another process."""

    def start(self, additions: TokenLists, queries: TokenLists) -> Any:
        """Begin a search and return what ``result`` needs."""
        ...

    def result(self, started: Any) -> Found:
        """Wait for a search.

        Raises:
            ShardLost: the shard died.
        """
        ...

    def close(self) -> None:
        """Stop the shard."""
        ...


# Makes an empty shard for statistics and a threshold.
ShardMaker = Callable[[Stats, float], Shard]


class ShardedSearcher:
    """Searches all shards at once. A shard that dies is made anew from the entries that the caller recalls."""

    def __init__(
        self, stats: Stats, make: Callable[[], Shard], count: int, recall: Callable[[range], TokenLists]
    ) -> None:
        """Make a searcher over an empty pool.

        Args:
            make: makes an empty shard.
            count: how many shards there are.
            recall: returns the token lists of entries of the pool by their indices, as they were added.
        """
        self._stats = stats
        self._make = make
        self._recall = recall
        self._shards = [make() for _ in range(count)]
        self._entries = 0

    def search(self, additions: TokenLists, queries: TokenLists) -> Found:
        """Add entries, then answer for queries.

        Raises:
            ClusterError: a shard died again and again.
        """
        count = len(self._shards)
        first, self._entries = self._entries, self._entries + len(additions)
        parts = [additions.select(range((number - first) % count, len(additions), count)) for number in range(count)]
        started = [self._start(number, part, queries) for number, part in enumerate(parts)]
        found = [self._finish(number, search, queries) for number, search in enumerate(started)]
        return self._join(found, queries)

    def close(self) -> None:
        """Stop the shards."""
        for shard in self._shards:
            shard.close()

    def _start(self, number: int, additions: TokenLists, queries: TokenLists) -> Any:
        try:
            return self._shards[number].start(additions, queries)
        except ShardLost as lost:
            return lost

    def _finish(self, number: int, started: Any, queries: TokenLists) -> Found:
        for attempt in range(_ATTEMPTS + 1):
            try:
                if isinstance(started, ShardLost):
                    raise started
                return self._shards[number].result(started)
            except ShardLost as error:
                if attempt == _ATTEMPTS:
                    raise ClusterError(
                        f"shard {number} of the novelty pool died {attempt + 1} times in a row ({error}): give it more "
                        "memory, or ask for more shards"
                    ) from error
                self._shards[number] = self._make()
                mine = self._recall(range(number, self._entries, len(self._shards)))
                started = self._start(number, mine, queries)
        raise AssertionError("unreachable")

    def _join(self, found: Sequence[Found], queries: TokenLists) -> Found:
        count = len(found)
        if self._stats == "full":
            rows = [part.rows for part in found if part.rows is not None]
            joined = np.empty((len(queries), self._entries), dtype=rows[0].dtype)
            for number, columns in enumerate(rows):
                joined[:, number::count] = columns
            return Found(rows=joined)
        scores, nearest = [], []
        for number, part in enumerate(found):
            assert part.scores is not None
            assert part.nearest is not None
            scores.append(part.scores)
            nearest.append(np.where(part.nearest < 0, part.nearest, part.nearest * count + number))
        k = 1 if self._stats == "none" else MOST_SIMILAR
        best, entries = best_of(np.concatenate(scores, axis=1), np.concatenate(nearest, axis=1), k)
        return Found(scores=best, nearest=entries)
