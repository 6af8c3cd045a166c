"""The dataset card: README.md with the front matter that a hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from alpaca_ray.report.rows import Schema

MARK = "<!-- written by alpaca_ray's jobs/report.py -->"

# The hub's size categories (huggingface_hub.DatasetCardData): each name with the number of records it ends below.
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)

_FIELDS: dict[Schema, str] = {
    "plain": "Each record holds an `id`, an `instruction`, an `input` (empty where the instruction needs none) and an "
    "`output`: all are texts.",
    "chat": "Each record holds an `id` and `messages`: a list of turns, each with `role` and `content`.",
    "mixed": "Chats and plain records stand together here. Each record holds an `id` and `messages`: a list of turns, "
    "each with `role` and `content`. A plain record's `instruction`, `input` and `output` stand beside them, and its "
    "`messages` say the same: a user's turn of instruction and input, an empty line between them, and the output as "
    "the answer. In a chat these three are empty texts.",
}


@dataclass(frozen=True)
class Card:
    """What a dataset card says.

    ``schema`` says which fields the records have. ``facts`` are (what, value) rows of the provenance table; ``counts``
    (reason, number) rows of what was rejected; ``settings`` (name, value) rows of the filters that were in force.
    ``figures`` are (what it shows, image file beside the card).
    """

    title: str
    license: str
    language: str
    synthetic: bool
    records: int
    schema: Schema
    data_file: str
    summary: str
    facts: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, int]]
    settings: Sequence[tuple[str, str]]
    figures: Sequence[tuple[str, str]]


def render_card(card: Card) -> str:
    """Return the card's text."""
    parts = [f"---\n{yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)}---", MARK]
    parts += [f"# {inline(card.title)}", card.summary]
    parts += ["## Records", _FIELDS[card.schema]]
    parts += ["## Where they come from", table(("what", "value"), card.facts)]
    if card.settings:
        parts += ["### Filters in force", table(("setting", "value"), card.settings)]
    if card.counts:
        rows = [(name, f"{count:,}") for name, count in card.counts]
        parts += ["### What became of each entry", table(("outcome", "entries"), rows)]
    parts += ["## Licence", _licence(card)]
    if card.figures:
        parts += ["## Figures", "\n\n".join(f"![{alt}]({name})" for alt, name in card.figures)]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Card) -> dict[str, Any]:
    size = next((name for limit, name in _SIZES if card.records < limit), "n>1T")
    matter: dict[str, Any] = {
        "license": card.license,
        "language": [card.language],
        "pretty_name": card.title,
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", *(["synthetic", "self-instruct"] if card.synthetic else []), "alpaca-ray"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": card.data_file}]}],
    }
    return matter


def _licence(card: Card) -> str:
    if card.license == "other":
        return (
            "Not stated. What may be done with these records follows from the terms of the teacher that wrote them and "
            "from the licence of the seed tasks: read both before you pass them on."
        )
    return f"`{card.license}`, as stated by whoever made this card."


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(inline(cell) for cell in line) + " |" for line in lines)


def inline(value: object) -> str:
    """Return a text on one line that cannot end its table cell, nor be read as HTML."""
    text = " ".join(str(value).split())
    for sign, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, safe)
    return text


def facts_table(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows of the values that are known; None is left out."""
    return [(name, str(value)) for name, value in values.items() if value is not None and value != ""]
