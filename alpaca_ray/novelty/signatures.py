"""Bounds on how much two token lists can have in common, from bit signatures and population counts.

Each token sets one bit of a list's signature. A bit that is set in A and not in B stands for at least one token of A
that B lacks, so that with ``c`` bits in common and ``excess`` = tokens - bits set, for each list,

    longest common subsequence ≤ common tokens ≤ c + min(excess of A, excess of B).

The bound is exact in this direction whatever the hash: collisions only weaken it. A segment keeps entries of like
length and excess together, so that one comparison of ``c`` with a constant decides for all of them, four queries at a
time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.compiled import compiled
from alpaca_ray.novelty.tokens import TokenLists

_HASHES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
SCAN = 128  # entries between two looks at what was found
_ONE = np.uint64(1)


def signatures(lists: TokenLists, words: int) -> NDArray[np.uint64]:
    """Return signatures of 64 · ``words`` bits and a second one of 64, shape (words + 1, lists)."""
    out = np.zeros((words + 1, len(lists)), dtype=np.uint64)
    _fill_signatures(lists.flat, lists.offsets, _HASHES[0], _HASHES[1], out)
    return out


@dataclass(frozen=True)
class Segment:
    """Entries in groups of like length and excess.

    Attributes:
        bits: signatures, shape (words + 1, entries), padded with zeros at the end to whole scans.
        entries: index of each entry in the pool, shape (entries,).
        groups: a row for each group: shortest and longest length, highest excess, first entry, behind the last.
    """

    bits: NDArray[np.uint64]
    entries: NDArray[np.int64]
    groups: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.entries)

    @staticmethod
    def of(bits: NDArray[np.uint64], entries: NDArray[np.int64], lengths: NDArray[np.int64]) -> Segment:
        """Sort entries into groups. ``bits``: shape (words + 1, entries); ``lengths``: tokens of each entry."""
        excess = lengths - np.bitwise_count(bits[:-1]).sum(axis=0, dtype=np.int64)
        order = np.lexsort((excess, lengths))
        lengths, excess = lengths[order], excess[order]
        starts = _group_starts(lengths, excess)
        groups = np.stack(
            [
                lengths[starts],
                np.maximum.reduceat(lengths, starts),
                np.maximum.reduceat(excess, starts),
                starts,
                np.append(starts[1:], len(order)),
            ],
            axis=1,
        ).astype(np.int64)
        padded = np.zeros((len(bits), len(order) + SCAN), dtype=np.uint64)
        padded[:, : len(order)] = bits[:, order]
        return Segment(padded, entries[order], groups)


def merge(segments: list[Segment], lengths: NDArray[np.int64]) -> Segment:
    """Return one segment in place of several. ``lengths``: tokens of every entry of the pool."""
    bits = np.concatenate([segment.bits[:, : len(segment)] for segment in segments], axis=1)
    entries = np.concatenate([segment.entries for segment in segments])
    return Segment.of(bits, entries, lengths[entries])


@compiled
def _group_starts(lengths: NDArray[np.int64], excess: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where groups begin: at a change of length or excess, once the group before fills a scan."""
    starts = [0]
    for entry in range(1, len(lengths)):
        changed = lengths[entry] != lengths[entry - 1] or excess[entry] != excess[entry - 1]
        if changed and entry - starts[-1] >= SCAN:
            starts.append(entry)
    return np.array(starts)


@compiled
def _fill_signatures(
    flat: NDArray[np.int32], offsets: NDArray[np.int64], first: np.uint64, second: np.uint64, out: NDArray[np.uint64]
) -> None:
    words = out.shape[0] - 1
    for row in range(len(offsets) - 1):
        for place in range(offsets[row], offsets[row + 1]):
            token = np.uint64(flat[place]) + _ONE
            spread = np.int64((token * first) >> np.uint64(40)) % (64 * words)
            out[spread >> 6, row] |= _ONE << np.uint64(spread & 63)
            out[words, row] |= _ONE << np.uint64((token * second) >> np.uint64(58))
