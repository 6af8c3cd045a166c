"""Token lists in the order they were added, and what others have in common with them. Knows no Ray, and no texts."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.lanes import lcs_rows
from alpaca_ray.novelty.rouge import Scores
from alpaca_ray.novelty.scan import scan, scan_range
from alpaca_ray.novelty.signatures import Segment, merge, signatures
from alpaca_ray.novelty.tokens import TokenLists

# Longest list, and 64-bit words of the signature, for each class of length: one that long leaves bits unset.
_CLASSES = ((24, 1), (48, 2), (128, 6), (None, 16))
_TAIL = 256  # entries that wait for a segment of their own; until then each is scored exactly
_PAIRS = 1 << 15
NO_LISTS = TokenLists.of([])
_RUN = 32  # queries of like length that stay together
_WORTH_A_THREAD = 1 << 20  # pairs below which a second thread costs more than it brings


class RougePool:
    """Grows by token lists; answers with LCS lengths or with the nearest entries of each query."""

    def __init__(self, *, workers: int = -1) -> None:
        """Make an empty pool. ``workers``: threads (-1: one for each core)."""
        self.workers = workers if workers > 0 else os.cpu_count() or 1
        self._threads: ThreadPoolExecutor | None = None
        self._flat = np.zeros(1 << 12, dtype=np.int32)
        self._offsets = np.zeros(1 << 10, dtype=np.int64)
        self._count = 0
        self._vocabulary = 1
        self._indexed = 0  # entries before this one are in a segment
        self._segments: list[list[Segment]] = [[] for _ in _CLASSES]
        self._idle: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self.scored = 0  # pairs that `nearest` had to score exactly, so far

    def __len__(self) -> int:
        return self._count

    @property
    def lists(self) -> TokenLists:
        """The entries' token lists (views, valid until the next ``add``)."""
        offsets = self._offsets[: self._count + 1]
        return TokenLists(self._flat[: offsets[-1]], offsets)

    def add(self, lists: TokenLists) -> None:
        """Append entries; the index of the first is the length before."""
        if not len(lists):
            return
        begin = int(self._offsets[self._count])
        end, count = begin + len(lists.flat), self._count + len(lists)
        self._flat = _grown(self._flat, end)
        self._offsets = _grown(self._offsets, count + 1)
        self._flat[begin:end] = lists.flat
        self._offsets[self._count + 1 : count + 1] = begin + lists.offsets[1:]
        self._count = count
        if len(lists.flat):
            self._vocabulary = max(self._vocabulary, int(lists.flat.max()) + 1)

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each entry, shape (entries,)."""
        return np.diff(self._offsets[: self._count + 1])

    def rows(self, queries: TokenLists) -> NDArray[Any]:
        """Return LCS lengths of each query with every entry, uint8 or int32, shape (queries, entries)."""
        out = empty_rows(queries, self._count)
        vocabulary = self._room_for(queries)
        lists = self.lists
        self._spread(
            np.argsort(queries.lengths, kind="stable"),
            lambda part: lcs_rows(queries.flat, queries.offsets, part, lists.flat, lists.offsets, vocabulary, out),
        )
        return out

    def nearest(self, queries: TokenLists, k: int, threshold: float) -> tuple[Scores, NDArray[np.int64]]:
        """Return each query's ``k`` nearest entries with a score above ``threshold``, and their exact scores.

        Entries whose score signatures and lengths bound from above at or below what counts are not scored.

        Returns:
            Scores and indices of entries, both of shape (queries, k), best first; of equal scores the earlier entry
            first; -1 in both where there are fewer.
        """
        scores = np.full((len(queries), k), -1.0)
        nearest = np.full((len(queries), k), -1, dtype=np.int64)
        if not len(queries) or not self._count:
            return scores, nearest
        self._index()
        vocabulary = self._room_for(queries)
        lists = self.lists
        bits = [
            signatures(queries if segments else NO_LISTS, words)
            for (_, words), segments in zip(_CLASSES, self._segments, strict=True)
        ]

        def search(part: NDArray[np.int64]) -> None:
            masks, pairs = self._scratch(vocabulary)
            found = 0
            for query_bits, segments in zip(bits, self._segments, strict=True):
                for segment in segments:
                    found += scan(
                        queries.flat,
                        queries.offsets,
                        part,
                        query_bits,
                        segment.bits,
                        segment.entries,
                        segment.groups,
                        lists.flat,
                        lists.offsets,
                        threshold,
                        masks,
                        pairs,
                        scores,
                        nearest,
                    )
            if self._indexed < self._count:
                found += scan_range(
                    queries.flat,
                    queries.offsets,
                    part,
                    self._indexed,
                    lists.flat,
                    lists.offsets,
                    threshold,
                    masks,
                    scores,
                    nearest,
                )
            self._idle.append((masks, pairs))
            self.scored += found

        self._spread(np.argsort(queries.lengths, kind="stable"), search)
        return scores, nearest

    def _index(self) -> None:
        """Put entries that wait into segments once there are enough of them."""
        if self._count - self._indexed < _TAIL:
            return
        lengths = self.lengths()
        new = np.arange(self._indexed, self._count)
        shortest = -1
        for place, (longest, words) in enumerate(_CLASSES):
            within = lengths[new] > shortest
            if longest is not None:
                within &= lengths[new] <= longest
                shortest = longest
            entries = new[within]
            if not len(entries):
                continue
            bits = signatures(self.lists.select(entries), words)
            segments = [*self._segments[place], Segment.of(bits, entries, lengths[entries])]
            # Each segment more than twice as large as the next: an entry is sorted anew only log2(entries) times.
            while len(segments) > 1 and len(segments[-2]) <= 2 * len(segments[-1]):
                segments[-2:] = [merge(segments[-2:], lengths)]
            self._segments[place] = segments
        self._indexed = self._count

    def _room_for(self, queries: TokenLists) -> int:
        return max(self._vocabulary, int(queries.flat.max()) + 1 if len(queries.flat) else 1)

    def _scratch(self, vocabulary: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return zeros for every token number and room for pairs; they go back to ``_idle`` after use."""
        with suppress(IndexError):  # none left: several threads may ask
            masks, pairs = self._idle.pop()
            if len(masks) >= vocabulary:
                return masks, pairs
        return np.zeros(2 * vocabulary, dtype=np.uint64), np.empty((2, _PAIRS), dtype=np.int64)

    def _spread(self, order: NDArray[np.int64], work: Callable[[NDArray[np.int64]], None]) -> None:
        """Do the work for parts of the queries, in threads where it is worth them."""
        if self.workers == 1 or len(order) * self._count < _WORTH_A_THREAD:
            work(order)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers)
        # Runs of queries of like length, dealt out in turn: each thread gets short and long ones.
        runs = [order[start : start + _RUN] for start in range(0, len(order), _RUN)]
        parts = [np.concatenate(runs[worker :: self.workers]) for worker in range(min(self.workers, len(runs)))]
        list(self._threads.map(work, parts))


def empty_rows(queries: TokenLists, entries: int) -> NDArray[Any]:
    """Return room for LCS lengths of queries with entries, in a type that holds them."""
    longest = int(queries.lengths.max()) if len(queries) else 0
    return np.zeros((len(queries), entries), dtype=np.uint8 if longest <= 255 else np.int32)


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    if size <= len(array):
        return array
    grown = np.zeros(max(size, 2 * len(array)), dtype=array.dtype)
    grown[: len(array)] = array
    return grown
