"""ROUGE-L F1 from lengths of longest common subsequences, in the float operations of rouge-score, to the last bit.

The lengths come from the bit-parallel algorithm of Hyyrö (2004, "Bit-parallel LCS-length computation revisited"): one
bit for each token of one list, one step for each token of the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.compiled import compiled, popcount

Scores = NDArray[np.float64]
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@compiled
def f1(common: int, target: int, prediction: int) -> float:
    """Return F1 as ``rouge_scorer._score_lcs`` and ``scoring.fmeasure`` compute it.

    ``target`` and ``prediction`` are the lengths of the two token lists; they may change places without changing a bit.
    """
    if common == 0:
        return 0.0
    precision = common / prediction
    recall = common / target
    return 2 * precision * recall / (precision + recall)


@compiled
def least_common(score: float, target: int, prediction: int) -> int:
    """Return a length that a common subsequence must have for F1 to reach ``score``; never too large.

    F1 is 2·common / (target + prediction) up to a relative rounding error of a few 2⁻⁵³, far below the 10⁻⁶ that is
    taken off here for lists of up to 10⁸ tokens.
    """
    return int(np.ceil(0.5 * score * (target + prediction) - 1e-6))


@compiled
def f1_row(common: NDArray[np.int32], target: int, lengths: NDArray[np.int64], out: Scores) -> None:
    """Fill ``out``, shape (entries,), with F1 of one list of ``target`` tokens against many.

    ``common``: lengths of the common subsequences; ``lengths``: tokens of each entry.
    """
    for index in range(len(common)):
        # A maximum of 1 where a list is empty: the common length is 0 there, and 0 is what rouge-score gives.
        precision = common[index] / max(lengths[index], 1)
        recall = common[index] / max(target, 1)
        total = precision + recall
        out[index] = 2 * precision * recall / (total if total > 0 else 1.0)


@compiled
def set_masks(masks: NDArray[np.uint64], tokens: NDArray[np.int32], begin: int, end: int) -> None:
    """Set, for each token number, the bits of its places in ``tokens[begin:end]`` (at most 64 of them)."""
    for place in range(begin, end):
        masks[tokens[place]] |= _ONE << np.uint64(place - begin)


@compiled
def clear_masks(masks: NDArray[np.uint64], tokens: NDArray[np.int32], begin: int, end: int) -> None:
    """Undo ``set_masks``."""
    for place in range(begin, end):
        masks[tokens[place]] = _ZERO


@compiled
def lcs_with_masks(masks: NDArray[np.uint64], size: int, tokens: NDArray[np.int32], begin: int, end: int) -> int:
    """Return the LCS length of the list whose ``masks`` are set (``size`` ≤ 64 tokens) and ``tokens[begin:end]``."""
    state = _ALL
    for place in range(begin, end):
        hit = state & masks[tokens[place]]
        state = (state + hit) | (state - hit)
    return int(popcount(~state & (_ALL >> np.uint64(64 - size)))) if size else 0


@compiled
def lcs_long(
    masks: NDArray[np.uint64],
    first: NDArray[np.int32],
    first_begin: int,
    first_end: int,
    second: NDArray[np.int32],
    begin: int,
    end: int,
) -> int:
    """Return the LCS length of two lists of any length, 64 tokens of the first at a time.

    ``masks``: zeros, one for each token number, and zeros again afterwards. What an addition carries out of a word is
    kept for each place of the second list, and carried into the next word there.
    """
    carries = np.zeros(end - begin, dtype=np.uint8)
    total = 0
    for start in range(first_begin, first_end, 64):
        stop = min(start + 64, first_end)
        set_masks(masks, first, start, stop)
        state = _ALL
        for place in range(begin, end):
            hit = state & masks[second[place]]
            added = state + hit
            overflow = added < state
            carried = added + np.uint64(carries[place - begin])
            overflow = overflow or carried < added
            carries[place - begin] = 1 if overflow else 0
            state = carried | (state - hit)
        total += int(popcount(~state & (_ALL >> np.uint64(64 - (stop - start)))))
        clear_masks(masks, first, start, stop)
    return total
