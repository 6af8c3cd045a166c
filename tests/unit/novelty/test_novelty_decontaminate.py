"""What is too near to an evaluation prompt, and which text of an evaluation file is its prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from novelty_support import score

from alpaca_ray.errors import DataError
from alpaca_ray.novelty.decontaminate import Contamination, Decontaminator, evaluation_prompts

LONG = "How many positive whole-number divisors does the number 196 have?"


def test_near_prompts_are_named_with_their_score() -> None:
    check = Decontaminator([LONG, "Name the capital of Peru.", "???"], workers=1)
    assert check.prompts == [LONG, "Name the capital of Peru."]
    text = "How many positive whole-number divisors does 196 have?"
    near, far, same = check.find([text, "Write a poem about the sea.", "name the capital of PERU"])
    assert near == Contamination(LONG, score(text, LONG), False)
    assert far is None
    assert same == Contamination("Name the capital of Peru.", 1.0, True) or same == Contamination(
        "Name the capital of Peru.", 1.0, False
    )


def test_the_threshold_itself_is_allowed() -> None:
    first, second = "a b c d e f g h i j", "a b c d e f g x y z"
    assert Decontaminator([first], workers=1).find([second]) == [None]
    (found,) = Decontaminator([first], threshold=0.69, workers=1).find([second])
    assert found is not None
    assert found.score == 0.7


def test_a_prompt_that_is_contained_whole_is_found_at_any_score() -> None:
    text = f"Here is a question from a test. {LONG} {' '.join(f'word{number}' for number in range(60))} Answer it."
    (found,) = Decontaminator([LONG], workers=1).find([text])
    assert found == Contamination(LONG, score(text, LONG), True)
    assert found.score < 0.7
    reordered = " ".join(reversed(text.split()))
    assert Decontaminator([LONG], workers=1).find([reordered]) == [None]


def test_a_short_prompt_may_stand_in_an_instruction() -> None:
    text = "Explain step by step, for a child, why the sum of two odd numbers is even"
    assert Decontaminator(["the sum of two odd numbers"], workers=1).find([text]) == [None]


def test_nearest_asks_with_and_without_the_input() -> None:
    check = Decontaminator(["Sort the list\n9 3 7 1 5"], workers=1)
    assert check.nearest("Sort the list", "") is None
    assert check.nearest("Sort the list", "9 3 7 1 5") == ("Sort the list\n9 3 7 1 5", 1.0)


@pytest.mark.parametrize(
    ("record", "prompts"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, ["Add.", "Add.\n1 2"]),
        ({"question": "What is 2+2?", "answer": "4"}, ["What is 2+2?"]),
        ({"prompt": "def f():", "question": "no"}, ["def f():"]),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "prompt": "no"},
            ["hi"],
        ),
    ],
)
def test_prompts_of_evaluation_files(tmp_path: Path, record: dict[str, object], prompts: list[str]) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert evaluation_prompts(str(path)) == prompts


def test_an_evaluation_record_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text('{"question": "ok"}\n{"answer": "4"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"eval\.jsonl: record 1: has no prompt"):
        evaluation_prompts(str(path))
