"""The dataset card: README.md with the front matter that a hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

MARK = "<!-- written by alpaca_ray's jobs/report.py -->"

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Card:
    """What a dataset card says.

    ``facts`` are (what, value) rows of the provenance table; ``counts`` (reason, number) rows of what was rejected;
    ``settings`` (name, value) rows of the filters that were in force. ``figures`` are image files, beside the card.
    """

    title: str
    license: str
    language: str
    synthetic: bool
    records: int
    chat: bool
    data_file: str
    summary: str
    facts: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, int]]
    settings: Sequence[tuple[str, str]]
    figures: Sequence[tuple[str, str]]


def render_card(card: Card) -> str:
    """Return the card's text."""
    parts = [f"---\n{yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)}---", MARK]
    parts += [f"# {_inline(card.title)}", card.summary]
    parts += ["## Records", _fields(card.chat)]
    parts += ["## Where they come from", _table(("what", "value"), card.facts)]
    if card.settings:
        parts += ["### Filters in force", _table(("setting", "value"), card.settings)]
    if card.counts:
        rows = [(name, f"{count:,}") for name, count in card.counts]
        parts += ["### What became of each entry", _table(("outcome", "entries"), rows)]
    parts += ["## Licence", _licence(card)]
    if card.figures:
        parts += ["## Figures", "\n\n".join(f"![{alt}]({name})" for alt, name in card.figures)]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Card) -> dict[str, Any]:
    size = next((name for limit, name in _SIZES if card.records < limit), "n>1M")
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


def _fields(chat: bool) -> str:
    if chat:
        return "Each record holds an `id` and `messages`: a list of turns, each with `role` and `content`."
    return (
        "Each record holds an `id`, an `instruction`, an `input` (empty where the instruction needs none) and an "
        "`output`: all are texts."
    )


def _licence(card: Card) -> str:
    if card.license == "other":
        return (
            "Not stated. What may be done with these records follows from the terms of the teacher that wrote them and "
            "from the licence of the seed tasks: read both before you pass them on."
        )
    return f"`{card.license}`, as stated by whoever made this card."


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines)


def _inline(value: object) -> str:
    """Keep somebody's text from ending its table cell, or from being read as HTML."""
    text = " ".join(str(value).split())
    for sign, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, safe)
    return text


def facts_table(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows of the values that are known; None is left out."""
    return [(name, str(value)) for name, value in values.items() if value is not None and value != ""]
