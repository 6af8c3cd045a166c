"""ROUGE-L of an instruction against a pool of instructions, equal to rouge-score's to the last bit.

rouge-score computes the length of the longest common subsequence in Python, token by token. Here every token is one
character, and rapidfuzz's bit-parallel ``LCSseq`` computes whole rows of lengths; precision, recall and F1 then follow
in the very float operations of ``rouge_scorer._score_lcs`` and ``scoring.fmeasure``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from alpaca_ray.novelty.tokens import Vocabulary

Scores = NDArray[np.float64]


class RougePool:
    """Token lists in the order they were added, and the ROUGE-L F1 of others against all of them."""

    def __init__(self, *, workers: int = -1) -> None:
        """Make an empty pool. ``workers``: threads that rapidfuzz uses (-1: one for each core)."""
        self._vocabulary = Vocabulary()
        self._strings: list[str] = []
        self._lengths = np.zeros(1024, dtype=np.int64)
        self._workers = workers

    def __len__(self) -> int:
        return len(self._strings)

    def add(self, tokens: list[str]) -> None:
        """Append an instruction's tokens; its index is the length before."""
        index = len(self._strings)
        if index == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._strings.append(self._vocabulary.encode(tokens))
        self._lengths[index] = len(tokens)

    def score(self, tokens: list[str], *, start: int = 0) -> Scores:
        """Return the F1 of ``tokens`` against the pool's entries from ``start`` on, shape (entries,)."""
        return self.score_many([tokens], start=start)[0]

    def score_many(self, queries: Sequence[list[str]], *, start: int = 0) -> Scores:
        """Return the F1 of each query against the pool's entries from ``start`` on, shape (queries, entries)."""
        entries = len(self._strings) - start
        if not queries or not entries:
            return np.zeros((len(queries), entries), dtype=np.float64)
        common: NDArray[Any] = process.cdist(
            [self._vocabulary.lookup(tokens) for tokens in queries],
            self._strings[start:] if start else self._strings,
            scorer=LCSseq.similarity,
            dtype=np.int32,
            workers=self._workers,
        )
        lengths = self._lengths[start : len(self._strings)]
        return f1(common, np.array([len(tokens) for tokens in queries], dtype=np.int64)[:, None], lengths[None, :])


def f1(common: NDArray[Any], target: NDArray[Any], prediction: NDArray[Any]) -> Scores:
    """Return ROUGE-L F1 from lengths of common subsequences and of both token lists, as rouge-score computes it.

    ``target`` is the candidate, ``prediction`` the pool's entry, as in the original's call. Two empty lists, like one,
    score 0.
    """
    # A maximum of 1 where a list is empty: the common length is 0 there, so the result is 0 as rouge-score's is.
    precision = common / np.maximum(prediction, 1)
    recall = common / np.maximum(target, 1)
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
