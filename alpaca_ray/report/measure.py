"""Figures of a set of records: lengths, coverage, similarities, duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alpaca_ray.models import EMBEDDED, embedded_is_cached, load_tokenizer
from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import Record

WORDS = "words"
COVERAGE_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
_BATCH = 2048

Lengths = np.ndarray  # one integer a text


@dataclass(frozen=True)
class Ruler:
    """Measures texts: ``measure`` maps a batch of them to their lengths, ``unit`` is the plural for labels."""

    unit: str
    described: str
    measure: Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Measures:
    """Figures of a set of records; lengths are arrays of one integer a record, in the ruler's unit.

    ``example`` is the length of prompt and output together, in Stanford's training template, as training sees it.
    ``similarities`` holds the highest ROUGE-L of each record that carries ``most_similar_instructions``.
    """

    ruler: Ruler
    instruction: Lengths
    input: Lengths
    output: Lengths
    example: Lengths
    similarities: np.ndarray
    without_output: int
    repeated: int
    chats: int

    @property
    def records(self) -> int:
        """Number of records."""
        return len(self.instruction)

    @property
    def with_input(self) -> int:
        """Number of records that have an input."""
        return int((self.input > 0).sum())

    def covered(self, length: int) -> float:
        """Return the share of examples, from 0 to 1, that are at most ``length`` long."""
        return float((self.example <= length).mean()) if self.records else 0.0


def choose_ruler(tokenizer: str | None) -> Ruler:
    """Return what measures lengths: a model's tokenizer, or words where none is named and none is cached.

    Raises:
        ModelError: the named tokenizer cannot be loaded.
    """
    name = tokenizer or (EMBEDDED if embedded_is_cached() else WORDS)
    if name == WORDS:
        return Ruler("words", "words (texts between spaces)", lambda texts: [len(text.split()) for text in texts])
    loaded = load_tokenizer(name, flag="--tokenizer")
    backend = getattr(loaded, "backend_tokenizer", None)

    def measure(texts: Sequence[str]) -> list[int]:
        if backend is None:  # a tokenizer written in Python
            return [len(ids) for ids in loaded(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
        return [len(found.ids) for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    described = "tokens of the embedded model's tokenizer" if name == EMBEDDED else f"tokens of {name}'s tokenizer"
    return Ruler("tokens", described, measure)


def fields_of(record: Record) -> tuple[str, str, str]:
    """Return instruction, input and output of a record; of a chat the first question and all answers.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.
    """
    if not is_chat(record):
        return clean(record.get("instruction")), clean(record.get("input")), clean(record.get("output"))
    asked = next((message["content"] for message in record["messages"] if message["role"] == "user"), "")
    answers = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    return clean(asked), "", clean("\n".join(answers))


def is_chat(record: Record) -> bool:
    """Whether a record is a chat: messages, and no instruction."""
    return bool(record.get("messages")) and not record.get("instruction")


def clean(text: object) -> str:
    """Return a value as text that UTF-8 can hold; none is empty."""
    return str(text or "").encode("utf-8", "replace").decode("utf-8")


def measure(records: Sequence[Record], ruler: Ruler) -> Measures:
    """Measure records."""
    columns: list[list[int]] = [[], [], [], []]
    seen: set[int] = set()
    without_output = 0
    for batch in _batches(records):
        texts = [fields_of(record) for record in batch]
        without_output += sum(not output.strip() for _, _, output in texts)
        seen.update(hash(text) for text in texts)
        for column, number in zip(columns, range(3), strict=False):
            column += ruler.measure([text[number] for text in texts])
        columns[3] += ruler.measure([_example(record, text) for record, text in zip(batch, texts, strict=True)])
    instruction, input, output, example = (np.asarray(column, dtype=np.int64) for column in columns)
    similarities = [found for found in map(_similarity, records) if found is not None]
    return Measures(
        ruler,
        instruction,
        input,
        output,
        example,
        similarities=np.asarray(similarities, dtype=np.float64),
        without_output=without_output,
        repeated=len(records) - len(seen),
        chats=sum(map(is_chat, records)),
    )


def coverage_rows(measures: Measures) -> list[tuple[int, float]]:
    """Return (maximum length, share of examples covered) for the usual lengths, up to the first that covers all."""
    rows: list[tuple[int, float]] = []
    for length in COVERAGE_LENGTHS:
        rows.append((length, measures.covered(length)))
        if rows[-1][1] >= 1:
            break
    return rows


def _example(record: Record, text: tuple[str, str, str]) -> str:
    if is_chat(record):
        return clean("\n".join(message["content"] for message in record["messages"]))
    return STANFORD.format({"instruction": text[0], "input": text[1]}) + text[2]


def _batches(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    for start in range(0, len(records), _BATCH):
        yield records[start : start + _BATCH]


def _similarity(record: Record) -> float | None:
    """Return the highest similarity that a record carries, as generation or deduplication wrote it."""
    near: Any = record.get("most_similar_instructions")
    if isinstance(near, Mapping):
        scores = [value for value in near.values() if isinstance(value, int | float) and 0 <= value <= 1]
        return max(scores) if scores else None
    return None
