from __future__ import annotations

import random

import pytest

from alpaca_ray.generate.entry import Entry
from alpaca_ray.generate.parse import parse_answer


def block(number: int, instruction: str, given: str = "<noinput>", output: str = "Yes.") -> str:
    return f"{number}. Instruction: {instruction}\n{number}. Input:\n{given}\n{number}. Output:\n{output}\n"


def answer(*blocks: str) -> str:
    return "###\n".join(blocks).removeprefix("4. Instruction:")


def parse(text: str, finish_reason: str = "stop") -> list[Entry]:
    return parse_answer(text, first_number=4, finish_reason=finish_reason)


def test_fields_are_taken_apart_and_stripped() -> None:
    entries = parse(
        answer(block(4, "Name a river.", "In Peru", "The Ucayali"), block(5, "Say yes.", " <NoInput> ", "Yes"))
    )
    assert [(entry.instruction, entry.input, entry.output, entry.problem) for entry in entries] == [
        ("Name a river.", "In Peru", "The Ucayali", None),
        ("Say yes.", "", "Yes", None),
    ]


def test_the_last_entry_is_dropped_when_the_length_limit_cut_it() -> None:
    text = answer(block(4, "Name a river."), block(5, "Name a mountain."))
    assert [entry.problem for entry in parse(text, "length")] == [None, "truncated"]
    assert [entry.problem for entry in parse(text + "###\n", "length")] == [None, None], "nothing of it was cut"


@pytest.mark.parametrize(
    "text",
    [
        " Name a river.\nAnswer: The Ucayali",
        " Name a river.\n4. Input:\n<noinput>",
        " Name a river.\n4. Output:\nIt\n4. Input:\n<noinput>",
        " Name a river.\n4. Input:\nx\n5. Output:\nIt",
        " Name a river.\n4. Input:\nx\n4. Input:\ny\n4. Output:\nIt",
    ],
)
def test_what_cannot_be_taken_apart_is_reported(text: str) -> None:
    (entry,) = parse(text)
    assert entry.problem == "unparsable"
    assert "Name a river." in entry.text


def test_a_heading_in_an_output_costs_nothing() -> None:
    text = answer(block(4, "Write a page.", output="### Title\nBody"), block(5, "Name a river."))
    entries = parse(text)
    assert [entry.problem for entry in entries] == [None, None]
    assert entries[0].output == "### Title\nBody"


def test_a_wrong_number_costs_no_later_entry() -> None:
    entries = parse(answer(block(4, "Name a river."), block(7, "Name a lake."), block(8, "Name a hill.")))
    assert [entry.instruction for entry in entries] == ["Name a river.", "Name a lake.", "Name a hill."]


def test_a_number_inside_another_is_no_field() -> None:
    (entry,) = parse(answer(block(4, "Fill in the form.", "14. Input: blank")))
    assert entry.input == "14. Input: blank"


def test_a_task_without_separator_is_a_task_of_its_own() -> None:
    entries = parse((block(4, "Name a river.") + block(5, "Name a lake.")).removeprefix("4. Instruction:"))
    assert [entry.instruction for entry in entries] == ["Name a river.", "Name a lake."]
    assert entries[0].output == "Yes."


def test_a_numbered_line_out_of_turn_is_no_task() -> None:
    (entry,) = parse(answer(block(4, "Name a river.", output="Yes.\n9. Instruction: none\n9. Output:\nx")))
    assert entry.output == "Yes.\n9. Instruction: none\n9. Output:\nx"


@pytest.mark.parametrize("opening", ["4. Instruction:", "###\n4. Instruction:", "\n\n### 4. Instruction:"])
def test_a_teacher_that_repeats_the_heading_is_understood(opening: str) -> None:
    entries = parse(opening + answer(block(4, "Name a river."), block(5, "Name a lake.")))
    assert [entry.instruction for entry in entries] == ["Name a river.", "Name a lake."]


def test_an_empty_answer_is_one_unparsable_entry() -> None:
    assert [entry.problem for entry in parse("")] == ["unparsable"]


def test_no_task_is_lost_or_changed_whatever_stands_in_its_fields() -> None:
    """Random tasks of awkward pieces, written down as a teacher would: what was written is what is read."""
    rng = random.Random(11)
    pieces = (
        "Yes",
        "no.",
        "14. Input: x",
        "### Title",
        "a # b",
        "2020.",
        "20.",
        "<noinput>?",
        "名前",
        "```py\nx\n```",
        "- item",
    )
    for _ in range(300):
        tasks = [
            tuple(rng.choice(("\n", " ")).join(rng.choices(pieces, k=rng.randint(1, 5))) for _ in range(3))
            for _ in range(rng.randint(1, 6))
        ]
        text = answer(*[block(number, *task) for number, task in enumerate(tasks, start=4)])
        assert [(entry.instruction, entry.input, entry.output) for entry in parse(text)] == tasks


def test_random_text_is_never_fatal_and_never_forgotten() -> None:
    rng = random.Random(5)
    pieces = (
        "###",
        "4. Instruction:",
        "5. Instruction:",
        "4. Input:",
        "5.  Output:",
        "4. Output:",
        "\n",
        " ",
        "word",
        "é",
        "#",
    )
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 25)))
        for finish_reason in ("stop", "length", None):
            entries = parse_answer(text, first_number=4, finish_reason=finish_reason)
            assert entries
            assert all(entry.problem in (None, "unparsable", "truncated") for entry in entries)
            assert text.count("word") == sum(entry.text.count("word") for entry in entries)
