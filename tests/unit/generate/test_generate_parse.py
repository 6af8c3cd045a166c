from __future__ import annotations

import pytest

from alpaca_ray.generate.filters import BLACKLIST, reason_to_reject
from alpaca_ray.generate.parse import Entry, parse_answer


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


@pytest.mark.parametrize("opening", ["4. Instruction:", "###\n4. Instruction:", "\n\n### 4. Instruction:"])
def test_a_teacher_that_repeats_the_heading_is_understood(opening: str) -> None:
    entries = parse(opening + answer(block(4, "Name a river."), block(5, "Name a lake.")))
    assert [entry.instruction for entry in entries] == ["Name a river.", "Name a lake."]


def test_an_empty_answer_is_one_unparsable_entry() -> None:
    assert [entry.problem for entry in parse("")] == ["unparsable"]


GOOD = "Name the longest river of Peru."


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        (GOOD, None),
        ("Name three rivers", "too_short"),
        ("Name three rivers now", None),
        ("", "too_short"),
        (" ".join(["word"] * 151), "too_long"),
        (" ".join(["word"] * 150), None),
        ("Please go to the shop at noon.", "blacklisted_word"),
        ("Describe this Video in one line.", "blacklisted_word"),
        ("Describe this videotape in one line.", None),
        ("Write a program that adds two numbers.", "write_a_program"),
        ("Please write a program that adds numbers.", None),
        ("'Tis the season: write a verse.", "starts_with_punctuation"),
        ("Écris un poème sur la mer.", "not_ascii_start"),
    ],
)
def test_filters_name_their_reason(instruction: str, reason: str | None) -> None:
    assert reason_to_reject(Entry("", instruction, "", "out")) == reason


@pytest.mark.parametrize("word", BLACKLIST)
def test_each_word_of_the_list_counts_in_any_case(word: str) -> None:
    assert reason_to_reject(Entry("", f"Now {word.upper()} it for the class.", "", "out")) == "blacklisted_word"


def test_rules_apply_in_the_originals_order() -> None:
    assert reason_to_reject(Entry("", "Draw video", "", "")) == "too_short"
    assert reason_to_reject(Entry("", "Write a program that can draw.", "", "")) == "blacklisted_word"
    assert reason_to_reject(Entry("", "Write a program that adds numbers.", "", "")) == "write_a_program"
    assert reason_to_reject(Entry("", GOOD, "", "")) == "empty_output"
    assert reason_to_reject(Entry("", GOOD, "", "", problem="truncated")) == "truncated"
