"""Thousands of instructions, so that signatures, segments and their merging decide, against rapidfuzz on every pair."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from novelty_support import plain_shards
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from alpaca_ray.novelty import pool as pool_module
from alpaca_ray.novelty.filter import Decision, NoveltyFilter
from alpaca_ray.novelty.search import Stats

COUNT = 2600
KNOWN = 40
SIZES = (1, 20, 100, 700)  # instructions that are decided together


@functools.cache
def texts() -> list[str]:
    """Pieces of earlier texts joined, words exchanged and repeated; most short, some in each class of length."""
    rng = random.Random(14)
    words = [f"w{number}" for number in range(1500)]
    weights = [1 / (number + 2) for number in range(1500)]
    made: list[list[str]] = []
    for _ in range(COUNT):
        size = rng.choice([3, 5, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24, 25, 31, 40, 48, 60, 65, 90, 130, 150])
        kind = rng.random()
        if len(made) > 20 and kind < 0.45:  # a near-duplicate
            parts = list(rng.choice(made))
            for _ in range(rng.randint(1, 1 + len(parts) // 4)):
                parts[rng.randrange(len(parts))] = rng.choices(words, weights)[0]
        elif len(made) > 20 and kind < 0.6:  # the beginning of one and the end of another
            first, second = rng.choice(made), rng.choice(made)
            parts = first[: len(first) // 2 + 1] + second[len(second) // 2 :]
        else:
            parts = rng.choices(words, weights, k=size)
        made.append(parts[:200])
    return list(dict.fromkeys(" ".join(parts) for parts in made))


@dataclass(frozen=True)
class Truth:
    """Of each candidate: whether it is kept, its scores with what was kept before, and their places among all texts."""

    keep: bool
    scores: Any
    entries: Any


@functools.cache
def truth(threshold: float) -> list[Truth]:
    letters: dict[str, str] = {}
    lists = [text.split() for text in texts()]
    strings = ["".join(letters.setdefault(token, chr(0x4E00 + len(letters))) for token in tokens) for tokens in lists]
    common = cdist(strings, strings, scorer=LCSseq.similarity, dtype=np.int32).astype(np.float64)
    lengths = np.array([len(tokens) for tokens in lists], dtype=np.float64)
    kept = list(range(KNOWN))
    found = []
    for number in range(KNOWN, len(strings)):
        precision, recall = common[number, kept] / lengths[kept], common[number, kept] / lengths[number]
        with np.errstate(invalid="ignore"):
            scores = np.nan_to_num(2 * precision * recall / (precision + recall))
        keep = not scores.max() > threshold
        found.append(Truth(keep, scores, np.array(kept)))
        if keep:
            kept.append(number)
    return found


def decide(stats: Stats, shards: int, threshold: float) -> list[Decision]:
    everything = texts()
    novelty = NoveltyFilter(
        everything[:KNOWN],
        threshold=threshold,
        stats=stats,
        workers=2,
        make_shard=plain_shards() if shards else None,
        num_shards=shards or 1,
    )
    rng = random.Random(3)
    found: list[Decision] = []
    while (start := KNOWN + len(found)) < len(everything):
        found += list(novelty.decide(everything[start : start + rng.choice(SIZES)]))
    novelty.close()
    return found


@pytest.mark.parametrize("shards", [0, 1, 2, 5])
@pytest.mark.parametrize(("stats", "threshold"), [("none", 0.7), ("none", 0.4), ("top", 0.7), ("full", 0.7)])
def test_an_indexed_pool_decides_as_every_pair_says(
    monkeypatch: pytest.MonkeyPatch, stats: Stats, shards: int, threshold: float
) -> None:
    used = {"scan": 0, "merge": 0}
    for name in used:
        plain = getattr(pool_module, name)

        def counted(*given: Any, name: str = name, plain: Any = plain) -> Any:
            used[name] += 1
            return plain(*given)

        monkeypatch.setattr(pool_module, name, counted)
    if shards > 1:  # each holds few of the entries
        monkeypatch.setattr(pool_module, "_TAIL", 32)
    expected = truth(threshold)
    assert 500 < sum(one.keep for one in expected) < len(expected) - 500
    everything = texts()
    for decision, wanted in zip(decide(stats, shards, threshold), expected, strict=True):
        assert decision.keep == wanted.keep
        order = np.lexsort((wanted.entries, -wanted.scores))
        if stats == "none":
            order = order[: 0 if wanted.keep else 1]
        nearest = [(everything[wanted.entries[place]], wanted.scores[place]) for place in order[:10]]
        assert list(decision.most_similar.items()) == nearest
        assert decision.average == (float(np.mean(wanted.scores)) if stats == "full" else None)
    assert (used["scan"] > 10, used["merge"] > 0) == (stats != "full",) * 2


def test_the_texts_reach_every_class_of_length() -> None:
    lengths = [len(text.split()) for text, one in zip(texts()[KNOWN:], truth(0.7), strict=True) if one.keep]
    shortest = 0
    for longest, _ in pool_module._CLASSES:
        within = sum(shortest < length <= (longest or 10**6) for length in lengths)
        assert within > 50, f"{within} kept texts of up to {longest} tokens"
        shortest = longest or 0
