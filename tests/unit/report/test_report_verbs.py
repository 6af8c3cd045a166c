"""Root verbs and objects: single shapes, and agreement with labels made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca_ray.records import shipped_seed_path
from alpaca_ray.report.verbs import AGREEMENT, Shape, count_verbs, parse

LABELS = Path(__file__).parent / "labelled_instructions.tsv"


def labelled() -> list[tuple[str, Shape]]:
    tasks = map(json.loads, shipped_seed_path().read_text(encoding="utf-8").splitlines())
    instructions = {task["id"]: task["instruction"] for task in tasks}
    rows = [line.split("\t") for line in LABELS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        (instructions[name], Shape(*(None if part == "-" else part for part in (verb, noun))))
        for name, verb, noun in rows
    ]


def test_the_parser_agrees_with_hand_labels_as_often_as_the_page_says() -> None:
    rows = labelled()
    assert len(rows) == AGREEMENT.labelled >= 100
    found = [(parse(text), label) for text, label in rows]
    assert sum(mine.verb == label.verb for mine, label in found) / len(rows) >= AGREEMENT.verb
    assert sum(mine.object == label.object for mine, label in found) / len(rows) >= AGREEMENT.object
    assert sum(mine == label for mine, label in found) / len(rows) >= 0.9


@pytest.mark.parametrize(
    ("text", "verb", "noun"),
    [
        ("Write a short story about two dogs.", "write", "story"),
        ("Generate a list of five different fruits.", "generate", "list"),
        ("Please, give me three ideas for a birthday party.", "give", "idea"),
        ("List three rivers in Europe.", "list", "river"),
        ("Given two words, create a sentence that uses both.", "create", "sentence"),
        ("Given the following array. Output an array of its squares.", "output", "array"),
        ("Can you recommend a good book?", "recommend", "book"),
        ("How does the presence of clouds affect the climate?", "affect", "climate"),
        ("Which planet has the most moons?", "have", "moon"),
        ("How many legs does a spider have?", "have", "leg"),
        ("You are given a paragraph. Find its topic.", "give", "paragraph"),
        ("I want you to act as a travel guide.", "want", None),
        ("Describe in detail the history of the bicycle.", "describe", "history"),
        ("Explain why the sky is blue.", "explain", None),
        ("Compare and contrast the two poems.", "compare", "poem"),
        ('Translate "good morning" into French.', "translate", None),
        ("What is the capital of France?", None, None),
        ("An essay about love", None, None),
        ("写一首诗。", None, None),
        ("12 + 30 = ?", None, None),
        ("", None, None),
    ],
)
def test_shapes(text: str, verb: str | None, noun: str | None) -> None:
    assert parse(text) == Shape(verb, noun)


def test_counts_and_the_top_of_them() -> None:
    counts = count_verbs(
        ["Write a poem.", "Write a poem.", "Write a song.", "Name a river.", "Explain why.", "What is it?"],
        limit=100,
        seed=1,
    )
    assert (counts.parsed, counts.of) == (6, 6)
    assert counts.verbs == {"write": 3, "name": 1, "explain": 1}
    assert counts.top() == [("write", [("poem", 2), ("song", 1)]), ("name", [("river", 1)])]


def test_at_most_twenty_verbs_and_four_objects_are_on_top() -> None:
    nouns = ["poem", "song", "letter", "story", "list"]
    verbs = [text.split()[0] for text, label in labelled() if label.verb and label.object][:40]
    counts = count_verbs([f"{verb} a {noun}." for verb in verbs for noun in nouns], limit=1000, seed=1)
    assert len(counts.top()) == 20
    assert {len(objects) for _, objects in counts.top()} == {4}


def test_a_sample_is_taken_of_more_than_the_limit_and_is_seeded() -> None:
    texts = [text for text, label in labelled() if label.verb][:100]
    first, again, other = (count_verbs(texts, limit=20, seed=seed) for seed in (1, 1, 2))
    assert first.parsed == 20
    assert first.of == 100
    assert 15 <= first.verbs.total() <= 20
    assert first == again
    assert first.verbs != other.verbs


def test_a_very_long_instruction_is_read_to_its_first_sentence_only() -> None:
    assert parse("Sort the list. " + "and so on " * 100_000) == Shape("sort", "list")
    assert parse("Sort the list " + "((((" * 50_000).verb == "sort"


def test_a_sample_is_taken_from_one_more_than_the_limit_on() -> None:
    texts = ["Write a poem."] * 4
    assert [count_verbs(texts, limit=limit, seed=1).parsed for limit in (5, 4, 3, 1)] == [4, 4, 3, 1]
