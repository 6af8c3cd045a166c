"""The original's novelty rule: keep an instruction unless its ROUGE-L with any earlier one exceeds a threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from alpaca_ray.novelty.pool import RougePool, Scores
from alpaca_ray.novelty.tokens import tokenize

_MOST_SIMILAR = 10


@dataclass(frozen=True)
class Decision:
    """What the rule says of one instruction.

    ``most_similar`` holds the ten nearest instructions with their scores, nearest first; where two of them are the same
    text it appears once. ``average`` is the mean over the whole pool, NaN-free: 0 for an empty pool.
    """

    keep: bool
    most_similar: dict[str, float]
    average: float


class NoveltyFilter:
    """Decides instruction by instruction; one that is kept joins the pool before the next is decided.

    The source of the rule, its strict comparison and its statistics is ``generate_instruction_following_data`` of
    stanford_alpaca.
    """

    def __init__(self, known: Iterable[str], *, threshold: float = 0.7, workers: int = -1) -> None:
        self.instructions: list[str] = []
        self._threshold = threshold
        self._pool = RougePool(workers=workers)
        for instruction in known:
            self._add(instruction, tokenize(instruction))

    def decide(self, candidates: Iterable[str]) -> Iterable[Decision]:
        """Yield a decision for each candidate, as if they came one by one.

        All are scored against the pool at once; what joins the pool meanwhile is scored when it is needed. A caller
        that stops iterating leaves the later candidates undecided and the pool without them.
        """
        texts = list(candidates)
        tokens = [tokenize(text) for text in texts]
        before = len(self._pool)
        scores = self._pool.score_many(tokens)
        for number, text in enumerate(texts):
            row = np.concatenate([scores[number], self._pool.score(tokens[number], start=before)])
            decision = self._judge(row)
            if decision.keep:
                self._add(text, tokens[number])
            yield decision

    def _judge(self, scores: Scores) -> Decision:
        if not len(scores):
            return Decision(True, {}, 0.0)
        nearest = np.argsort(scores)[-_MOST_SIMILAR:][::-1]
        similar = {self.instructions[index]: float(scores[index]) for index in nearest}
        return Decision(not scores.max() > self._threshold, similar, float(np.mean(scores)))

    def _add(self, instruction: str, tokens: list[str]) -> None:
        self.instructions.append(instruction)
        self._pool.add(tokens)
