"""The novelty rule by comparing all pairs, with nothing of ours: rapidfuzz's subsequence lengths and numpy.

Every candidate is compared with every instruction that was kept before it; only F1, a few divisions, is written out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score import tokenize

_TOGETHER = 256
_SURROGATES = range(0xD800, 0xE000)  # numbers of characters that no text may hold


def kept_by_brute_force(texts: Sequence[str], threshold: float, workers: int) -> tuple[list[bool], int]:
    """Return whether each text is kept, and how many pairs were compared for that.

    Args:
        texts: instructions in order.
        threshold: ROUGE-L F1 above which one is dropped.
        workers: threads (-1: one for each core).
    """
    strings, lengths = _as_strings(texts)
    kept: list[int] = []
    keep: list[bool] = []
    pairs = 0
    for start in range(0, len(texts), _TOGETHER):
        block = range(start, min(start + _TOGETHER, len(texts)))
        pool = np.array(kept, dtype=np.int64)
        asked = [strings[number] for number in block]
        dropped = _any_above(asked, lengths[block], [strings[n] for n in kept], lengths[pool], threshold, workers)
        common = cdist(asked, asked, scorer=LCSseq.similarity, dtype=np.int32, workers=workers)
        within: list[int] = []
        for number, above in zip(block, dropped, strict=True):
            pairs += len(kept)
            others = np.array(within, dtype=np.int64)
            scores = _f1(common[number - start, others - start], lengths[number], lengths[others])
            keep.append(not above and not (scores > threshold).any())
            if keep[-1]:
                within.append(number)
                kept.append(number)
    return keep, pairs


def _any_above(
    asked: list[str], sizes: Any, pool: list[str], pool_sizes: Any, threshold: float, workers: int
) -> list[bool]:
    """Return whether each of ``asked`` has a score above the threshold with one of the pool."""
    if not pool:
        return [False] * len(asked)
    common = cdist(asked, pool, scorer=LCSseq.similarity, dtype=np.int32, workers=workers)
    # F1 is 2 · common / (sum of lengths) but for rounding: what is near the threshold is computed as rouge-score does.
    near = 2 * common >= (threshold - 1e-6) * (sizes[:, None] + pool_sizes)
    rows, columns = np.nonzero(near)
    above = _f1(common[rows, columns], sizes[rows], pool_sizes[columns]) > threshold
    found = np.zeros(len(asked), dtype=bool)
    found[rows[above]] = True
    return found.tolist()


def _f1(common: Any, sizes: Any, other_sizes: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = common / other_sizes, common / sizes
        return np.where(common > 0, 2 * precision * recall / (precision + recall), 0.0)


def _as_strings(texts: Sequence[str]) -> tuple[list[str], Any]:
    """Return texts in which each token is one character, and their lengths, shape (texts,)."""
    free = (number for number in itertools.count(256) if number not in _SURROGATES)
    letters: dict[str, str] = {}
    strings = []
    for text in texts:
        for token in (tokens := tokenize.tokenize(text, None)):
            if token not in letters:
                letters[token] = chr(next(free))
        strings.append("".join(letters[token] for token in tokens))
    return strings, np.array([len(string) for string in strings], dtype=np.int64)
