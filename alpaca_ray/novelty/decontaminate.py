"""Keeping an evaluation set out of training data: what is too near to one of its prompts is found and named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.errors import DataError
from alpaca_ray.hub_rows import HubRows
from alpaca_ray.novelty.pool import RougePool
from alpaca_ray.novelty.tokens import TokenizerName, Vocabulary, tokenize_unicode, tokenizer
from alpaca_ray.records import first_user_message
from alpaca_ray.rows import locate, read_rows

# The first of these that holds a text is an evaluation record's prompt; a chat's is its first user message.
PROMPT_FIELDS = ("prompt", "instruction", "question", "problem", "query", "text")
_SHORTEST_CONTAINED = 8  # tokens; a shorter prompt may stand in an innocent instruction by chance


@dataclass(frozen=True)
class Contamination:
    """The evaluation prompt that a record is too near to.

    Attributes:
        prompt: its text.
        score: ROUGE-L F1 of the two; 1 where they are the same text, also where the tokenizer sees nothing of it.
        contained: whether the record holds the whole prompt, token for token; ``score`` may then be low.
    """

    prompt: str
    score: float
    contained: bool


class Decontaminator:
    """Finds records that are near to an evaluation prompt.

    They are: equal to it, as texts (but for white space) or token for token, whatever the threshold; near by ROUGE-L
    above a threshold; or a text that contains the prompt whole.

    Attributes:
        prompts: the distinct prompts, without those that are empty.
    """

    def __init__(
        self,
        prompts: Iterable[str],
        *,
        threshold: float = 0.7,
        workers: int = -1,
        tokenizer_name: TokenizerName = "rouge",
    ) -> None:
        """Make one over evaluation prompts, and say how many of them the tokenizer sees little or nothing of.

        Args:
            prompts: texts.
            threshold: F1 above which a record counts as contaminated, 0 to 1.
            workers: threads (-1: one for each core).
            tokenizer_name: as the novelty filter's.
        """
        self._tokenize = tokenizer(tokenizer_name)
        self.prompts = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip()]
        self._by_text = {_plain(prompt): prompt for prompt in reversed(self.prompts)}
        tokens = {prompt: self._tokenize(prompt) for prompt in self.prompts}
        self._seen = [prompt for prompt, found in tokens.items() if found]  # in the order of the pool
        self._threshold = threshold
        self._vocabulary = Vocabulary()
        self._pool = RougePool(workers=workers)
        self._pool.add(self._vocabulary.encode(tokens[prompt] for prompt in self._seen))
        self._by_tokens: dict[tuple[str, ...], int] = {}
        self._by_start: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
        for index, prompt in enumerate(self._seen):
            self._by_tokens.setdefault(tuple(tokens[prompt]), index)
            if len(tokens[prompt]) >= _SHORTEST_CONTAINED:
                self._by_start[tuple(tokens[prompt][:_SHORTEST_CONTAINED])].append((index, tokens[prompt]))
        if tokenizer_name == "rouge":
            _warn(tokens)

    def find(self, texts: Sequence[str]) -> list[Contamination | None]:
        """Return, for each text, the nearest prompt where it is too near, or one that it contains; else None."""
        lists = [self._tokenize(text) for text in texts]
        encoded = self._vocabulary.encode(lists, grow=False)
        scores, nearest = self._pool.nearest(encoded, 1, self._threshold)
        found: list[Contamination | None] = []
        for number, (text, tokens) in enumerate(zip(texts, lists, strict=True)):
            same = self._by_tokens.get(tuple(tokens))
            if _plain(text) in self._by_text:
                found.append(Contamination(self._by_text[_plain(text)], 1.0, True))
            elif same is not None:
                found.append(Contamination(self._seen[same], 1.0, True))
            elif nearest[number, 0] >= 0:
                index = int(nearest[number, 0])
                found.append(
                    Contamination(self._seen[index], float(scores[number, 0]), index == self._contained(tokens))
                )
            elif (contained := self._contained(tokens)) is not None:
                alone = RougePool(workers=1)
                alone.add(self._pool.lists.select([contained]))
                score = float(alone.nearest(encoded.select([number]), 1, -1.0)[0][0, 0])
                found.append(Contamination(self._seen[contained], score, True))
            else:
                found.append(None)
        return found

    def find_records(self, records: Sequence[tuple[str, str]]) -> list[Contamination | None]:
        """Do what ``find`` does for records of an instruction and an input: by the instruction, else with the input."""
        found = self.find([instruction for instruction, _ in records])
        again = [number for number, (_, extra) in enumerate(records) if extra and found[number] is None]
        for number, near in zip(again, self.find([asked(*records[n])[-1] for n in again]), strict=True):
            found[number] = near
        return found

    def nearest(self, instruction: str, input: str = "") -> tuple[str, float] | None:
        """Return the prompt that one record is too near to, by its instruction or with its input, and their score."""
        (found,) = self.find_records([(instruction, input)])
        return (found.prompt, found.score) if found is not None else None

    def _contained(self, tokens: list[str]) -> int | None:
        for start in range(len(tokens) - _SHORTEST_CONTAINED + 1):
            for index, prompt in self._by_start.get(tuple(tokens[start : start + _SHORTEST_CONTAINED]), ()):
                if tokens[start : start + len(prompt)] == prompt:
                    return index
        return None


def asked(instruction: str, input: str) -> list[str]:
    """Return the texts that a record may be asked as: its instruction, and with its input where it has one."""
    return [instruction, *([f"{instruction}\n{input}"] if input else [])]


def evaluation_prompts(source: str) -> list[str]:
    """Read the prompts of an evaluation set: JSON list, JSONL, Parquet, a stage's folder or a hub dataset id.

    Of each record: the first user message of ``messages``, else the first of ``PROMPT_FIELDS`` that holds a text. A
    record with an ``input`` gives two prompts, without it and with it. Of a hub dataset the split that the id names
    (``owner/name:split``, ``owner/name:config:split``), else ``test``, else ``validation``; which is said.

    Raises:
        DataError: the file is missing, empty or malformed, or a record has no prompt; names file and record.
    """
    name, on_hub = locate(source)
    rows: Iterable[Any] = read_rows(source)
    if on_hub:
        rows = opened = HubRows(name, evaluation=True)
        say(f"{source}: prompts of its split '{opened.split}' are kept out")
    found: list[str] = []
    for index, row in enumerate(rows):
        found += _prompts_of(row, f"{source}: record {index}")
    if not found:
        raise DataError(f"{source}: holds no records")
    return found


def _prompts_of(row: Any, where: str) -> list[str]:
    if isinstance(row, Mapping):
        said = first_user_message(row.get("messages"))
        if said is not None:
            return [said]
        for field in PROMPT_FIELDS:
            if isinstance(row.get(field), str) and row[field].strip():
                extra = row.get("input")
                return asked(row[field], extra if isinstance(extra, str) else "")
    raise DataError(f"{where}: has no prompt to keep out (one of the fields {', '.join(PROMPT_FIELDS)}, or 'messages')")


def _plain(text: str) -> str:
    return " ".join(text.split())


def _warn(tokens: Mapping[str, list[str]]) -> None:
    """Say how many prompts are for the most part in characters that the original's tokenizer drops."""
    unseen = sum(2 * len(found) < len(tokenize_unicode(prompt)) for prompt, found in tokens.items())
    if unseen:
        say(
            f"warning: of {unseen:,} of {len(tokens):,} evaluation prompts --tokenizer rouge sees less than half (a-z "
            "and 0-9 alone), so that only the same text is sure to be found: give --tokenizer unicode"
        )
