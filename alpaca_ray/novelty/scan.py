"""The search for the nearest entries of a pool: signatures rule out nearly all pairs, the rest is scored exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.compiled import compiled, popcount
from alpaca_ray.novelty.rouge import clear_masks, f1, lcs_long, lcs_with_masks, least_common, set_masks
from alpaca_ray.novelty.signatures import SCAN

_BLOCK = 1024  # entries whose signatures stay in the first cache while all queries pass over them
_UNREACHABLE = np.int64(1) << np.int64(40)


@compiled
def note(score: float, entry: int, threshold: float, scores: NDArray[np.float64], nearest: NDArray[np.int64]) -> None:
    """Put a score into a query's best ones, shape (k,), where it belongs there."""
    if not score > threshold:
        return
    place = len(scores)
    while place > 0 and (
        nearest[place - 1] < 0
        or score > scores[place - 1]
        or (score == scores[place - 1] and entry < nearest[place - 1])
    ):
        place -= 1
    for later in range(len(scores) - 1, place, -1):
        scores[later] = scores[later - 1]
        nearest[later] = nearest[later - 1]
    if place < len(scores):
        scores[place] = score
        nearest[place] = entry


@compiled
def _score_one(
    queries: NDArray[np.int32],
    begin: int,
    end: int,
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    entry: int,
    threshold: float,
    masks: NDArray[np.uint64],
    scores: NDArray[np.float64],
    nearest: NDArray[np.int64],
) -> int:
    """Score one pair where the lengths alone do not rule it out; return whether it was, as 0 or 1."""
    first, last = offsets[entry], offsets[entry + 1]
    floor = max(threshold, scores[len(scores) - 1])
    if least_common(floor, end - begin, last - first) > min(end - begin, last - first):
        return 0
    if end - begin <= 64:
        common = lcs_with_masks(masks, end - begin, tokens, first, last)
    else:
        common = lcs_long(masks, queries, begin, end, tokens, first, last)
    note(f1(common, end - begin, last - first), entry, threshold, scores, nearest)
    return 1


@compiled
def _score(
    queries: NDArray[np.int32],
    query_offsets: NDArray[np.int64],
    chosen: NDArray[np.int64],
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    threshold: float,
    masks: NDArray[np.uint64],
    heads: NDArray[np.int64],
    pairs: NDArray[np.int64],
    scores: NDArray[np.float64],
    nearest: NDArray[np.int64],
) -> int:
    """Score pairs exactly, query by query, and note the best; return how many needed it.

    ``heads``: the last pair of each chosen query; ``pairs``: the pair before it (-1: none), and the entry.
    """
    scored = 0
    for number in range(len(chosen)):
        pair = heads[number]
        if pair < 0:
            continue
        heads[number] = -1
        query = chosen[number]
        begin, end = query_offsets[query], query_offsets[query + 1]
        if end - begin <= 64:
            set_masks(masks, queries, begin, end)
        while pair >= 0:
            entry = pairs[1, pair]
            scored += _score_one(
                queries, begin, end, tokens, offsets, entry, threshold, masks, scores[query], nearest[query]
            )
            pair = pairs[0, pair]
        if end - begin <= 64:
            clear_masks(masks, queries, begin, end)
    return scored


@compiled
def scan(
    queries: NDArray[np.int32],
    query_offsets: NDArray[np.int64],
    chosen: NDArray[np.int64],
    query_bits: NDArray[np.uint64],
    bits: NDArray[np.uint64],
    entries: NDArray[np.int64],
    groups: NDArray[np.int64],
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    threshold: float,
    masks: NDArray[np.uint64],
    pairs: NDArray[np.int64],
    scores: NDArray[np.float64],
    nearest: NDArray[np.int64],
) -> int:
    """Find the nearest entries of a segment for each chosen query, and return how many pairs were scored exactly.

    Args:
        chosen: indices of queries, best sorted by length.
        query_bits: signatures of all queries, of this segment's width, shape (words + 1, queries).
        bits, entries, groups: a ``Segment``.
        tokens, offsets: token lists of the whole pool.
        threshold: only scores above it count.
        masks: zeros, one for each token number, and zeros again afterwards.
        pairs: room for pairs that the signatures do not rule out, shape (2, room).
        scores, nearest: best scores so far and the entries that have them, shape (queries, k), best first; where scores
            tie, the earlier entry first; -1 where there is none yet. Updated in place.
    """
    words = bits.shape[0] - 1
    places = scores.shape[1]
    count = len(chosen)
    quads = (count + 3) // 4
    need = np.empty(quads * 4, dtype=np.int64)
    least = np.empty(quads * 4, dtype=np.int64)
    excess = np.zeros(quads * 4, dtype=np.int64)
    second_excess = np.zeros(quads * 4, dtype=np.int64)
    sizes = np.zeros(quads * 4, dtype=np.int64)
    wanted = np.zeros((quads * 4, words), dtype=np.uint64)
    for number in range(count):
        query = chosen[number]
        sizes[number] = query_offsets[query + 1] - query_offsets[query]
        excess[number] = sizes[number]
        for word in range(words):
            wanted[number, word] = query_bits[word, query]
            excess[number] -= np.int64(popcount(query_bits[word, query]))
        second_excess[number] = sizes[number] - np.int64(popcount(query_bits[words, query]))
    counts = np.empty((4, SCAN), dtype=np.int64)
    heads = np.full(count, -1, dtype=np.int64)
    room = pairs.shape[1]
    used = 0
    scored = 0
    for group in range(len(groups)):
        shortest, longest, group_excess, start, end = groups[group]
        for number in range(quads * 4):
            least[number] = _UNREACHABLE
            need[number] = _UNREACHABLE
            if number < count:
                floor = max(threshold, scores[chosen[number], places - 1])
                common = least_common(floor, sizes[number], shortest)
                if common <= min(sizes[number], longest):
                    least[number] = common
                    need[number] = common - min(excess[number], group_excess)
        for block in range(start, end, _BLOCK):
            block_end = min(block + _BLOCK, end)
            for quad in range(quads):
                base = 4 * quad
                n0, n1, n2, n3 = need[base], need[base + 1], need[base + 2], need[base + 3]
                if min(min(n0, n1), min(n2, n3)) == _UNREACHABLE:
                    continue
                q0, q1, q2, q3 = wanted[base, 0], wanted[base + 1, 0], wanted[base + 2, 0], wanted[base + 3, 0]
                for begin in range(block, block_end, SCAN):
                    peaks = (_UNREACHABLE, _UNREACHABLE, _UNREACHABLE, _UNREACHABLE)
                    if words == 1:
                        m0 = m1 = m2 = m3 = np.uint64(0)
                        for entry in range(begin, begin + SCAN):
                            found = bits[0, entry]
                            m0, m1 = max(m0, popcount(q0 & found)), max(m1, popcount(q1 & found))
                            m2, m3 = max(m2, popcount(q2 & found)), max(m3, popcount(q3 & found))
                        if np.int64(m0) < n0 and np.int64(m1) < n1 and np.int64(m2) < n2 and np.int64(m3) < n3:
                            continue
                        peaks = (np.int64(m0), np.int64(m1), np.int64(m2), np.int64(m3))
                    stop = min(begin + SCAN, block_end)
                    for lane in range(4):
                        number = base + lane
                        if need[number] == _UNREACHABLE or peaks[lane] < need[number]:
                            continue
                        for place in range(SCAN):
                            counts[lane, place] = 0
                        for word in range(words):
                            mine = wanted[number, word]
                            for place in range(SCAN):
                                counts[lane, place] += np.int64(popcount(mine & bits[word, begin + place]))
                        second = query_bits[words, chosen[number]]
                        for place in range(stop - begin):
                            if counts[lane, place] < need[number]:
                                continue
                            other = bits[words, begin + place]
                            spare = longest - np.int64(popcount(other))
                            bound = np.int64(popcount(second & other)) + min(second_excess[number], spare)
                            if bound < least[number]:
                                continue
                            if used == room:
                                scored += _score(
                                    queries,
                                    query_offsets,
                                    chosen,
                                    tokens,
                                    offsets,
                                    threshold,
                                    masks,
                                    heads,
                                    pairs,
                                    scores,
                                    nearest,
                                )
                                used = 0
                            pairs[0, used] = heads[number]
                            pairs[1, used] = entries[begin + place]
                            heads[number] = used
                            used += 1
    return scored + _score(
        queries, query_offsets, chosen, tokens, offsets, threshold, masks, heads, pairs, scores, nearest
    )


@compiled
def scan_range(
    queries: NDArray[np.int32],
    query_offsets: NDArray[np.int64],
    chosen: NDArray[np.int64],
    first: int,
    tokens: NDArray[np.int32],
    offsets: NDArray[np.int64],
    threshold: float,
    masks: NDArray[np.uint64],
    scores: NDArray[np.float64],
    nearest: NDArray[np.int64],
) -> int:
    """Do what ``scan`` does for the entries from ``first`` on, which are in no segment, with length bounds alone."""
    scored = 0
    for query in chosen:
        begin, end = query_offsets[query], query_offsets[query + 1]
        if end - begin <= 64:
            set_masks(masks, queries, begin, end)
        for entry in range(first, len(offsets) - 1):
            scored += _score_one(
                queries, begin, end, tokens, offsets, entry, threshold, masks, scores[query], nearest[query]
            )
        if end - begin <= 64:
            clear_masks(masks, queries, begin, end)
    return scored
