"""What is too near to an evaluation prompt, and which text of an evaluation file is its prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from novelty_support import score

from alpaca_ray.errors import DataError
from alpaca_ray.novelty.decontaminate import Contamination, Decontaminator, evaluation_prompts

LONG = "How many positive whole-number divisors does the number 196 have?"


def test_near_prompts_are_named_with_their_score() -> None:
    check = Decontaminator([LONG, "Name the capital of Peru.", " ", LONG], workers=1)
    assert check.prompts == [LONG, "Name the capital of Peru."]
    text = "How many positive whole-number divisors does 196 have?"
    near, far, same = check.find([text, "Write a poem about the sea.", "name the capital of PERU"])
    assert near == Contamination(LONG, score(text, LONG), False)
    assert far is None
    assert same == Contamination("Name the capital of Peru.", 1.0, True)


def test_the_same_text_is_found_whatever_the_threshold_and_the_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    chinese = "法国的 首都是哪里？"
    check = Decontaminator(["a b c", chinese, "??? !", LONG], threshold=1.0, workers=1)
    assert "warning: of 1 of 4 evaluation prompts --tokenizer rouge sees less than half" in capsys.readouterr().out
    assert check.prompts == ["a b c", chinese, "??? !", LONG]
    found = check.find(
        ["A, b. C", f" {chinese[:4]}\n{chinese[4:]}", "???  !", "??!", "a b c d", "法国的首都", "", LONG]
    )
    assert found == [
        Contamination("a b c", 1.0, True),
        Contamination(chinese, 1.0, True),
        Contamination("??? !", 1.0, True),
        None,
        None,
        None,
        None,
        Contamination(LONG, 1.0, True),
    ]


def test_what_the_unicode_tokenizer_sees_is_found_when_near_and_brings_no_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = ["法国的首都是哪里？", "用Python写一首诗", "écrire ça", "list 3 rivers", "list 3 реки"]
    (found,) = Decontaminator(prompts, tokenizer_name="unicode", workers=1).find(["法国的首都在哪里？"])
    assert found is not None
    assert (found.prompt, found.contained) == (prompts[0], False)
    assert 0.7 < found.score < 1
    assert capsys.readouterr().out == ""
    Decontaminator(prompts, workers=1)
    assert "warning: of 2 of 5 evaluation prompts" in capsys.readouterr().out
    Decontaminator(prompts[2:], workers=1)
    assert capsys.readouterr().out == ""


def test_texts_that_are_checked_leave_nothing_behind() -> None:
    check = Decontaminator(["one two three four", LONG], workers=1)
    known = len(check._vocabulary)
    texts = [" ".join(f"word{number}x{place}" for place in range(12)) for number in range(50)]
    assert check.find(texts) == [None] * 50
    (near,) = check.find(["one new two three four other"])
    assert near == Contamination(
        "one two three four", score("one new two three four other", "one two three four"), False
    )
    assert len(check._vocabulary) == known


@pytest.mark.parametrize("batch", [1, 3])
def test_records_are_asked_by_instruction_and_with_input(batch: int) -> None:
    check = Decontaminator(["Sort the list\n9 3 7 1 5", "Add two numbers please"], workers=1)
    records = [("Sort the list", ""), ("Sort the list", "9 3 7 1 5"), ("Add two numbers please", "1 2 3 4 5 6 7")]
    found = [one for start in range(0, 3, batch) for one in check.find_records(records[start : start + batch])]
    assert [near and near.prompt for near in found] == [None, "Sort the list\n9 3 7 1 5", "Add two numbers please"]


def test_of_a_hub_dataset_the_test_split_is_read_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    def load(name: str, config: str | None = None, *, streaming: bool) -> Any:
        splits = {"train": "TRAIN", "validation": "VALIDATION", "test": "TEST"}
        if config:
            splits = {"train": f"{config} TRAIN", "validation": f"{config} VALIDATION"}
        return {split: [{"question": f"{name} {text}"}] for split, text in splits.items()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source, prompt, split in (
        ("some/set", "some/set TEST", "test"),
        ("some/set:train", "some/set TRAIN", "train"),
        ("some/set:easy:validation", "some/set easy VALIDATION", "validation"),
    ):
        assert evaluation_prompts(source) == [prompt]
        assert f"{source}: prompts of its split '{split}'" in capsys.readouterr().out


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
    ending = " ".join([*(f"word{number}" for number in range(60)), LONG])
    assert Decontaminator([LONG], workers=1).find([ending]) == [Contamination(LONG, score(ending, LONG), True)]
    eight = "how many rivers flow through Peru to Brazil"
    (found,) = Decontaminator([eight], workers=1).find([" ".join([*(f"w{n}" for n in range(60)), eight])])
    assert found is not None
    assert found.contained, "the shortest prompt, at the very end"
    near = f"Answer this: {LONG}"
    assert score(near, LONG) > 0.7
    assert Decontaminator([LONG], workers=1).find([near]) == [Contamination(LONG, score(near, LONG), True)]
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
