"""``--stanford_compat``: the original's parser and filters, held to a literal reading of what they do."""

from __future__ import annotations

import random
import re
import string
from typing import Any

import pytest

from alpaca_ray.generate.answers import AnswerReader
from alpaca_ray.settings.filters import BLACKLIST, FilterSettings


def kept(text: str, finish_reason: str = "stop", **given: Any) -> list[tuple[str, str, str]]:
    settings = FilterSettings.resolve(given or {"stanford_compat": True})
    read = AnswerReader(settings, first_number=4).read(text, finish_reason)
    return [(entry.instruction, entry.input, entry.output) for entry, reason in read if reason is None]


def block(number: int, instruction: str, given: str = "<noinput>", output: str = "Yes.") -> str:
    return f"{number}. Instruction: {instruction}\n{number}. Input:\n{given}\n{number}. Output:\n{output}\n"


def answer(*blocks: str) -> str:
    return "###\n".join(blocks).removeprefix("4. Instruction:")


def numbered(count: int, output: str = "Yes.") -> str:
    return answer(*[block(4 + place, f"Name river number {place} of Peru.", output=output) for place in range(count)])


def test_a_heading_in_an_output_loses_every_later_entry() -> None:
    blocks = [block(4 + place, f"Name river number {place} of Peru.") for place in range(16)]
    blocks[2] = block(6, "Write a page about rivers.", output="### Title\nBody")
    text = answer(*blocks)
    assert len(kept(text)) == 3
    assert kept(text)[2] == ("Write a page about rivers.", "", ""), "and the output of the third is cut at the heading"
    assert len(kept(text, parser="robust")) == 16


def test_a_skipped_number_loses_that_entry_and_every_later_one() -> None:
    text = answer(block(4, "Name a river of Peru."), block(6, "Name a lake of Peru."), block(7, "Name a hill of Peru."))
    assert len(kept(text)) == 1
    assert len(kept(text, parser="robust")) == 3


def test_an_empty_output_passes() -> None:
    assert kept(answer(block(4, "Name a river of Peru.", output=""))) == [("Name a river of Peru.", "", "")]


def test_a_number_ending_in_the_number_is_taken_for_a_field() -> None:
    text = answer(block(4, "Fill in the form.", "14. Input: blank"))
    assert kept(text) == []
    assert kept(text, parser="robust") == [("Fill in the form.", "14. Input: blank", "Yes.")]


def test_labels_are_counted_not_read() -> None:
    text = " Name a river of Peru.\n4. Output:\nUcayali\n4. Input:\n<NOINPUT>"
    assert kept(text) == [("Name a river of Peru.", "Ucayali", "<NOINPUT>")]
    assert kept(text, parser="robust") == []


def test_no_input_is_known_in_any_case() -> None:
    assert kept(answer(block(4, "Name a river of Peru.", " <NoInput> "))) == [("Name a river of Peru.", "", "Yes.")]


def test_a_teacher_that_repeats_the_heading_loses_its_first_task() -> None:
    text = "4. Instruction:" + numbered(2)
    assert len(kept(text)) == 1
    assert len(kept(text, parser="robust")) == 2


def test_the_last_piece_goes_when_the_length_ended_the_answer() -> None:
    assert len(kept(numbered(3), "length")) == 2
    assert len(kept(numbered(3) + "###", "length")) == 3, "the last piece is then the empty one"
    assert len(kept(numbered(3), "stop")) == 3


@pytest.mark.parametrize(
    ("instruction", "passes"),
    [
        ("Name three rivers", False),
        ("Name three rivers now", True),
        ("列出秘鲁最长的河流", False),
        (" ".join(["word"] * 150), True),
        (" ".join(["word"] * 151), False),
        ("Map each city to its country.", False),
        ("Explain what a FILE system is.", False),
        ("Explain graph theory to a child.", False),
        ("Please go to the shop at noon.", False),
        ("Describe this videotape in one line.", True),
        ("Write a program that adds numbers.", False),
        ("Please write a program that adds numbers.", True),
        ("'Tis the season: write a verse.", False),
        ("Écris un poème sur la mer.", False),
    ],
)
def test_filters_of_the_original(instruction: str, passes: bool) -> None:
    assert bool(kept(answer(block(4, instruction)))) == passes


def literally(text: str, finish_reason: str, shown: int = 3) -> list[tuple[str, str, str]]:
    """The rules of ``post_process_gpt3_response``, one after the other, as its documentation and papers tell them."""
    found = []
    pieces = re.split("###", f"{shown + 1}. Instruction:{text}")
    for place, piece in enumerate(pieces):
        if place == len(pieces) - 1 and finish_reason == "length":
            break
        parts = re.split(rf"{place + shown + 1}\.\s+(Instruction|Input|Output):", piece)
        if len(parts) != 7:
            continue
        instruction, given, output = parts[2].strip(), parts[4].strip(), parts[6].strip()
        unwanted = (
            not 3 < len(instruction.split()) <= 150
            or any(re.search(rf"\b{word}\b", instruction, re.IGNORECASE) for word in BLACKLIST)
            or instruction.startswith("Write a program")
            or instruction[0] in string.punctuation
            or not instruction[0].isascii()
        )
        if not unwanted:
            found.append((instruction, "" if given.lower() == "<noinput>" else given, output))
    return found


def test_random_answers_are_read_as_the_original_reads_them() -> None:
    rng = random.Random(2)
    words = ("Name", "the", "river", "map", "é", "'", "Write a program", "###", "14. Input:", "5. Output:", "x.", "\n")
    kinds = 0
    for _ in range(3000):
        blocks = [
            block(
                4 + place + (rng.random() < 0.05),
                " ".join(rng.choices(words[:7], (9, 9, 9, 1, 1, 1, 1), k=rng.randint(2, 9))),
                rng.choice(("<noinput>", "<NOINPUT>", "some text")),
                " ".join(rng.choices(words, k=rng.randint(0, 6))),
            )
            for place in range(rng.randint(1, 5))
        ]
        text = answer(*blocks)[: rng.choice((40, 90, 10_000))]
        finish_reason = rng.choice(("stop", "length"))
        expected = literally(text, finish_reason)
        assert kept(text, finish_reason) == expected
        kinds |= 1 << len(expected)
    assert kinds.bit_count() > 4, "answers of no, one, two, ... kept tasks all occurred"
