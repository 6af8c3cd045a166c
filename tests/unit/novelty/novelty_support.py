"""Stanford's loop with rouge-score's own functions, seeded streams, and shards that live in this process."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rouge_score import rouge_scorer
from rouge_score import tokenize as rouge_tokenize

from alpaca_ray.novelty.search import Found, LocalSearcher, Stats
from alpaca_ray.novelty.shards import ShardLost, ShardMaker
from alpaca_ray.novelty.tokens import TokenLists

WORDS = (
    *("write", "a", "poem", "about", "the", "sea", "and", "list", "five", "names", "of", "rivers", "in", "Peru"),
    *("explain", "why", "3", "x", "7", "is", "21", "Straße", "naïve"),
)


@dataclass(frozen=True)
class Expected:
    """What the sequence says of one candidate. ``scores``: with every earlier kept instruction, in order."""

    keep: bool
    nearest: dict[str, float]
    mean: float
    scores: dict[str, float]


def score(first: str, second: str) -> float:
    """F1 by rouge-score's functions, as the original calls them."""
    tokens = [rouge_tokenize.tokenize(text, None) for text in (first, second)]
    return float(rouge_scorer._score_lcs(*tokens).fmeasure)


def oldest_first(scores: list[float]) -> list[int]:
    """Places by score; of equal ones the earlier first. ``np.argsort``, the original's, orders equal ones by chance."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def reference(
    seeds: list[str],
    candidates: list[str],
    threshold: float = 0.7,
    tokenize: Callable[[str], list[str]] = lambda text: rouge_tokenize.tokenize(text, None),
) -> list[Expected]:
    """Stanford's loop, one candidate after the other."""
    instructions = list(seeds)
    tokens = [tokenize(text) for text in instructions]
    result = []
    for text in candidates:
        new = tokenize(text)
        scores = [rouge_scorer._score_lcs(new, other).fmeasure for other in tokens]
        keep = not scores or not max(scores) > threshold
        nearest = {instructions[index]: scores[index] for index in oldest_first(scores)[:10]}
        by_text = dict(zip(instructions, scores, strict=True))
        result.append(Expected(keep, nearest, float(np.mean(scores)) if scores else 0.0, by_text))
        if keep:
            instructions.append(text)
            tokens.append(new)
    return result


def random_text(rng: random.Random, known: list[str]) -> str:
    """An instruction of a kind that has gone wrong somewhere: empty, repeated, nearly repeated, long, not ASCII."""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(["", "  ", "?!", "中文的指令", "écrire ça", "🙂🙂", "\u2028"])
    if kind < 0.2 and known:
        return rng.choice(known)
    if kind < 0.3:  # of ten tokens each; two of one stem that share seven score exactly 0.7
        stem = " ".join(rng.choice((WORDS[:7], WORDS[7:14])))
        return f"{stem} {' '.join(rng.sample(['alpha', 'beta', 'gamma', 'delta', 'eps', 'zeta', 'eta'], 3))}"
    if kind < 0.5 and known:
        words = rng.choice(known).split() or ["x"]
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        return " ".join(words)
    if kind < 0.53:
        return " ".join(rng.choices(WORDS, k=rng.choice([63, 64, 65, 65, 128, 200])))
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 25)))


@functools.cache
def stream_with_reference(seed: int) -> tuple[list[str], list[str], list[Expected]]:
    """Return a stream and what the sequence says of it: it takes rouge-score long, and several tests want it."""
    seeds, candidates = stream(seed)
    return seeds, candidates, reference(seeds, candidates)


def stream(seed: int, length: int = 45, seeds: int = 8) -> tuple[list[str], list[str]]:
    """Return seeded known instructions and candidates."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(length):
        texts.append(random_text(rng, texts))
    return texts[:seeds], texts[seeds:]


class PlainShard:
    """A shard in this process. ``dies_at``: the searches at which it is lost, counted over all shards of a run."""

    def __init__(self, stats: Stats, threshold: float, dies_at: set[int] | None = None, counter: Any = None) -> None:
        self._searcher = LocalSearcher(stats, threshold, workers=1)
        self._dies_at = dies_at or set()
        self._counter = counter if counter is not None else [0]
        self.closed = False

    def start(self, additions: TokenLists, queries: TokenLists) -> Any:
        self._counter[0] += 1
        if self._counter[0] in self._dies_at:
            return ShardLost("killed")
        return self._searcher.search(additions, queries)

    def result(self, started: Any) -> Found:
        if isinstance(started, ShardLost):
            raise started
        return started  # type: ignore[no-any-return]

    def close(self) -> None:
        self.closed = True


def plain_shards(dies_at: set[int] | None = None) -> ShardMaker:
    """Return what makes shards in this process."""
    counter = [0]
    return lambda stats, threshold: PlainShard(stats, threshold, dies_at, counter)
