"""One row schema and one list of reasons for whatever is dropped, in generation and in deduplication."""

from __future__ import annotations

from typing import Any, Literal, get_args

Reason = Literal[
    "truncated",
    "unparsable",
    "too_short",
    "too_long",
    "blacklisted_word",
    "write_a_program",
    "starts_with_punctuation",
    "not_ascii_start",
    "empty_output",
    "prompt_leak",
    "refused",
    "contaminated",
    "too_similar",
]

REASONS: tuple[Reason, ...] = get_args(Reason)


def rejected_row(
    reason: Reason,
    *,
    request_id: int | None = None,
    entry: int | None = None,
    instruction: str = "",
    input: str = "",
    output: str = "",
    text: str = "",
    most_similar: str | None = None,
    score: float | None = None,
    id: str | int | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Return a rejected record as it is written to ``rejected.jsonl``.

    Args:
        request_id: number of the request whose answer held it (None outside generation).
        entry: its place in that answer, from 0; or the index of the record in the file it came from.
        text: the raw text where it could not be taken apart into instruction, input and output.
        most_similar: the nearest earlier instruction, where novelty was the reason, or the nearest evaluation prompt,
            where contamination was, with its ROUGE-L as ``score``.
        id: the record's own, or the one that it got from its content (None in generation).
        source: the file that it came from (None in generation).
    """
    return {
        "request_id": request_id,
        "entry": entry,
        "reason": reason,
        "instruction": instruction,
        "input": input,
        "output": output,
        "text": text,
        "most_similar": most_similar,
        "score": score,
        "id": id,
        "source": source,
    }
