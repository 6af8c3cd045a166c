"""The original's novelty rule: keep an instruction unless its ROUGE-L with any earlier one exceeds a threshold."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alpaca_ray.novelty.batch import Batch, Neighbours
from alpaca_ray.novelty.search import Found, LocalSearcher, Searcher, Stats
from alpaca_ray.novelty.shards import ShardedSearcher, ShardMaker
from alpaca_ray.novelty.tokens import TokenizerName, TokenLists, Vocabulary
from alpaca_ray.novelty.tokens import tokenizer as tokens_of

_BATCH = 1024  # instructions that are scored against the pool at once, where so many come together
_CELLS = 1 << 26  # lengths (one byte each) that a batch may take with full statistics
_LEAST = 32
_WORTH_THREADS = 1 << 16  # scores to sort below which threads cost more than they bring


@dataclass(frozen=True)
class Decision:
    """What the rule says of one instruction.

    ``most_similar`` holds the nearest instructions with their scores, nearest first; where two of them are the same
    text it appears once. ``average`` is the mean over the whole pool, NaN-free: 0 for an empty pool.

    Which of it is filled depends on the statistics: ``full`` has the ten nearest and the average, ``top`` the ten
    nearest and None, ``none`` None and, for an instruction that is dropped, its nearest one. A dropped instruction
    always has its nearest first, with the exact score.
    """

    keep: bool
    most_similar: dict[str, float]
    average: float | None


class NoveltyFilter:
    """Decides instruction by instruction; one that is kept joins the pool before the next is decided.

    The source of the rule, its strict comparison and its statistics is ``generate_instruction_following_data`` of
    stanford_alpaca. Decisions and scores are the same with all statistics and any number of shards. Of equal
    scores the earlier instruction comes first among the ten nearest; the original's ``np.argsort`` orders those by
    chance, and another way on another processor.
    """

    def __init__(
        self,
        known: Iterable[str],
        *,
        threshold: float = 0.7,
        workers: int = -1,
        stats: Stats = "full",
        tokenizer: TokenizerName = "rouge",
        make_shard: ShardMaker | None = None,
        num_shards: int = 1,
    ) -> None:
        """Make a filter over instructions that are known from the start.

        Args:
            known: instructions that join the pool undecided.
            threshold: F1 above which an instruction is dropped, 0 to 1.
            workers: threads in this process (-1: one for each core).
            stats: what a decision tells beside whether to keep: ``full``, ``top`` or ``none``.
            tokenizer: ``rouge`` (the original's) or ``unicode``.
            make_shard: makes each of ``num_shards`` shards; None: the pool is in this process.
        """
        self.instructions: list[str] = []
        self._unseen = 0  # of them, without a token
        self._name = tokenizer
        self._threshold = threshold
        self._stats = stats
        self._tokenize = tokens_of(tokenizer)
        self._vocabulary = Vocabulary()
        self._searcher: Searcher = (
            LocalSearcher(stats, threshold, workers=workers)
            if make_shard is None
            else ShardedSearcher(stats, functools.partial(make_shard, stats, threshold), num_shards, self._recall)
        )
        self._workers = workers if workers > 0 else os.cpu_count() or 1
        self._threads: ThreadPoolExecutor | None = None
        self._lengths = np.zeros(1024, dtype=np.int64)
        self._new: list[NDArray[np.int32]] = []  # of what the searcher does not have yet
        texts = list(known)
        for start in range(0, len(texts), _BATCH):
            group = texts[start : start + _BATCH]
            tokens = self._vocabulary.encode(map(self._tokenize, group))
            for number, text in enumerate(group):
                self._add(text, tokens, number)
            self._hand_over(self._vocabulary.encode([]))

    def decide(self, candidates: Iterable[str]) -> Iterator[Decision]:
        """Yield a decision for each candidate, as if they came one by one.

        All are scored against the pool at once, and against each other where the sequence would. A caller that stops
        iterating leaves the later candidates undecided and the pool without them.

        Raises:
            ClusterError: a shard died again and again.
            RuntimeError: the pool grew by another call's candidates in between.
        """
        texts = list(candidates)
        start = 0
        while start < len(texts):
            size = _BATCH
            if self._stats == "full":
                size = max(_LEAST, min(_BATCH, _CELLS // (len(self.instructions) + 1)))
            yield from self._decide(texts[start : start + size])
            start += size

    @property
    def warning(self) -> str | None:
        """What a person should hear of instructions that the tokenizer could not compare; None where there are none.

        ROUGE's drops all but a-z and 0-9. By its rule two texts without a token have nothing in common.
        """
        if not self._unseen:
            return None
        advice = ": --tokenizer unicode sees them" if self._name == "rouge" else ""
        return (
            f"warning: {self._unseen:,} of {len(self.instructions):,} instructions hold no token of --tokenizer "
            f"{self._name} and were compared with nothing{advice}"
        )

    def close(self) -> None:
        """Stop threads and shards."""
        self._searcher.close()
        if self._threads is not None:
            self._threads.shutdown()

    def _decide(self, texts: list[str]) -> Iterator[Decision]:
        tokens = self._vocabulary.encode(map(self._tokenize, texts))
        found = self._hand_over(tokens)
        pooled = len(self.instructions)
        batch = Batch(tokens, found, self._lengths[:pooled], self._threshold)
        kept = [text for text, keep in zip(texts, batch.keep, strict=True) if keep]
        for number, neighbours in enumerate(self._describe(batch)):
            if len(self.instructions) != pooled + batch.before[number]:
                raise RuntimeError("the pool grew while a batch was being decided: finish one decide() at a time")
            similar = {
                self.instructions[entry] if entry < pooled else kept[entry - pooled]: float(score)
                for entry, score in zip(neighbours.entries, neighbours.scores, strict=True)
            }
            if batch.keep[number]:
                self._add(texts[number], tokens, number)
            yield Decision(bool(batch.keep[number]), similar, neighbours.average)

    def _describe(self, batch: Batch) -> Iterator[Neighbours]:
        numbers = range(len(batch.keep))
        if self._stats == "none":
            return map(batch.nearest_of_dropped, numbers)
        if self._stats == "top":
            return map(batch.top, numbers)
        # Most of the time goes into compiled passes over the pool, which let other threads run.
        if len(numbers) * len(self.instructions) < _WORTH_THREADS or self._workers == 1:
            return map(batch.full, numbers)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers)
        return self._threads.map(batch.full, numbers)

    def _hand_over(self, queries: TokenLists) -> Found:
        """Give the searcher what was kept since the last time, and ask it about queries."""
        additions, self._new = TokenLists.of(self._new), []
        return self._searcher.search(additions, queries)

    def _add(self, text: str, tokens: TokenLists, number: int) -> None:
        index = len(self.instructions)
        if index == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        begin, end = tokens.offsets[number], tokens.offsets[number + 1]
        self.instructions.append(text)
        self._lengths[index] = end - begin
        self._unseen += int(begin == end)
        self._new.append(tokens.flat[begin:end])

    def _recall(self, indices: range) -> TokenLists:
        return self._vocabulary.encode(self._tokenize(self.instructions[index]) for index in indices)
