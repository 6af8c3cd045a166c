"""Keeping an evaluation set out of training data: what is too near to one of its prompts is found and named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_ray.errors import DataError
from alpaca_ray.novelty.pool import RougePool
from alpaca_ray.novelty.tokens import TokenizerName, Vocabulary, tokenizer
from alpaca_ray.rows import read_rows

# The first of these that holds a text is an evaluation record's prompt; a chat's is its first user message.
PROMPT_FIELDS = ("prompt", "instruction", "question", "problem", "query", "text")
_SHORTEST_CONTAINED = 8  # tokens; a shorter prompt may stand in an innocent instruction by chance


@dataclass(frozen=True)
class Contamination:
    """The evaluation prompt that a record is too near to.

    Attributes:
        prompt: its text.
        score: ROUGE-L F1 of the two.
        contained: whether the record holds the whole prompt, token for token; ``score`` may then be low.
    """

    prompt: str
    score: float
    contained: bool


class Decontaminator:
    """Finds records that are near to an evaluation prompt: by ROUGE-L above a threshold, or because they contain it."""

    def __init__(
        self,
        prompts: Iterable[str],
        *,
        threshold: float = 0.7,
        workers: int = -1,
        tokenizer_name: TokenizerName = "rouge",
    ) -> None:
        """Make one over evaluation prompts.

        Args:
            prompts: texts; those without a token are left out, since nothing can be near to them.
            threshold: F1 above which a record counts as contaminated, 0 to 1.
            workers: threads (-1: one for each core).
            tokenizer_name: as the novelty filter's.
        """
        self._tokenize = tokenizer(tokenizer_name)
        tokens = {prompt: self._tokenize(prompt) for prompt in prompts}
        self.prompts = [prompt for prompt, found in tokens.items() if found]
        self._threshold = threshold
        self._vocabulary = Vocabulary()
        self._pool = RougePool(workers=workers)
        self._pool.add(self._vocabulary.encode(tokens[prompt] for prompt in self.prompts))
        self._by_start: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
        for index, prompt in enumerate(self.prompts):
            if len(tokens[prompt]) >= _SHORTEST_CONTAINED:
                self._by_start[tuple(tokens[prompt][:_SHORTEST_CONTAINED])].append((index, tokens[prompt]))

    def find(self, texts: Sequence[str]) -> list[Contamination | None]:
        """Return, for each text, the nearest prompt where it is too near, or one that it contains; else None."""
        lists = [self._tokenize(text) for text in texts]
        encoded = self._vocabulary.encode(lists)
        scores, nearest = self._pool.nearest(encoded, 1, self._threshold)
        found: list[Contamination | None] = []
        for number, tokens in enumerate(lists):
            contained = self._contained(tokens)
            if nearest[number, 0] >= 0:
                index = int(nearest[number, 0])
                found.append(Contamination(self.prompts[index], float(scores[number, 0]), index == contained))
            elif contained is not None:
                alone = RougePool(workers=1)
                alone.add(self._pool.lists.select([contained]))
                score = float(alone.nearest(encoded.select([number]), 1, -1.0)[0][0, 0])
                found.append(Contamination(self.prompts[contained], score, True))
            else:
                found.append(None)
        return found

    def nearest(self, instruction: str, input: str = "") -> tuple[str, float] | None:
        """Return the prompt that one record is too near to, by its instruction or with its input, and their score."""
        found = self.find([instruction, *([f"{instruction}\n{input}"] if input else [])])
        return next(((near.prompt, near.score) for near in found if near is not None), None)

    def _contained(self, tokens: list[str]) -> int | None:
        for start in range(len(tokens) - _SHORTEST_CONTAINED + 1):
            for index, prompt in self._by_start.get(tuple(tokens[start : start + _SHORTEST_CONTAINED]), ()):
                if tokens[start : start + len(prompt)] == prompt:
                    return index
        return None


def evaluation_prompts(source: str) -> list[str]:
    """Read the prompts of an evaluation file: JSON list, JSONL, Parquet, a stage's folder or a hub dataset id.

    Of each record: the first user message of ``messages``, else the first of ``PROMPT_FIELDS`` that holds a text. A
    record with an ``input`` gives two prompts, without it and with it.

    Raises:
        DataError: the file is missing, empty or malformed, or a record has no prompt; names file and record.
    """
    prompts: list[str] = []
    for index, row in enumerate(read_rows(source)):
        prompts += _prompts_of(row, f"{source}: record {index}")
    if not prompts:
        raise DataError(f"{source}: holds no records")
    return prompts


def _prompts_of(row: Any, where: str) -> list[str]:
    if isinstance(row, Mapping):
        for message in row.get("messages") or []:
            if isinstance(message, Mapping) and message.get("role") == "user":
                if isinstance(message.get("content"), str):
                    return [message["content"]]
                break
        for field in PROMPT_FIELDS:
            if isinstance(row.get(field), str) and row[field].strip():
                extra = row.get("input")
                return [row[field], *([f"{row[field]}\n{extra}"] if isinstance(extra, str) and extra else [])]
    raise DataError(f"{where}: has no prompt to keep out (one of the fields {', '.join(PROMPT_FIELDS)}, or 'messages')")
