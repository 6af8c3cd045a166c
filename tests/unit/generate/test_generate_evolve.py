from __future__ import annotations

import random
from collections import Counter

import pytest

from alpaca_ray.generate.answers import AnswerReader
from alpaca_ray.generate.entry import Entry
from alpaca_ray.generate.evolve import OPERATORS, choose_operator, encode_evolve
from alpaca_ray.generate.filters import EntryFilter
from alpaca_ray.generate.prompt import PromptMaker, load_header
from alpaca_ray.records import read_seed_tasks
from alpaca_ray.settings.filters import FilterSettings

SEEDS = read_seed_tasks("seeds")
POOL = [{"instruction": f"Kept task number {place}", "input": "", "output": "x", "extra": [1]} for place in range(300)]


def maker(response_format: str = "text") -> PromptMaker:
    header = load_header("full", 20, strategy="evolve", response_format=response_format)
    return PromptMaker(header, SEEDS, 1, 42, response_format, "evolve")


def test_five_operators_deepen_and_one_broadens() -> None:
    assert len(set(OPERATORS.values())) == 6
    assert "broaden" in OPERATORS
    drawn = Counter(choose_operator(random.Random(number)) for number in range(600))
    assert set(drawn) == set(OPERATORS.values())
    assert min(drawn.values()) > 50


def test_a_prompt_holds_operator_and_task_and_ends_where_task_1_begins() -> None:
    task = {"id": "a", "instruction": "Name  a\nriver.", "input": "In Peru"}
    text = encode_evolve("Do it: {operator}\n", "Harder!", task, as_json=False)
    assert text.startswith("Do it: Harder!\nInstruction: Name a river.\nInput:\nIn Peru\n")
    assert text.endswith("###\n1. Instruction:")
    as_json = encode_evolve("Do it.\n", "Harder!", {**task, "input": ""}, as_json=True)
    assert as_json.startswith("Do it.\n\nHarder!\n\nInstruction: Name a river.\nInput:\n<noinput>\n")
    assert "1. Instruction" not in as_json
    assert "JSON" in as_json


def test_sources_are_drawn_evenly_from_seeds_and_pool() -> None:
    prompts = maker()
    assert prompts.draws
    assert prompts.first_number == 1
    drawn = [prompts.draw(number, POOL) for number in range(1000)]
    assert drawn == [prompts.draw(number, POOL) for number in range(1000)]
    share = sum(map(len, drawn)) / 1000
    assert abs(share - len(POOL) / (len(POOL) + len(SEEDS))) < 0.06
    assert all(not prompts.draw(number, []) for number in range(50))
    number = next(number for number, records in enumerate(drawn) if records)
    (record,) = drawn[number]
    place = int(record["id"].removeprefix("machine:"))
    assert record == {"id": f"machine:{place}", "instruction": POOL[place]["instruction"], "input": "", "output": "x"}
    prompt = prompts.make(number, drawn[number])
    assert prompt.seed_ids == [record["id"]]
    assert f"Instruction: {record['instruction']}\n" in prompt.text
    assert prompts.make(number).seed_ids[0] in {str(task["id"]) for task in SEEDS}


def test_the_same_request_has_the_same_operator_whatever_it_rewrites() -> None:
    prompts = maker()
    for number in range(30):
        first, second = (prompts.make(number, [{**POOL[place], "id": "machine:1"}]).text for place in (0, 0))
        assert first == second
        assert sum(operator in first for operator in OPERATORS.values()) == 1
        assert "{" not in first


def test_the_form_of_the_answer_follows_the_settings() -> None:
    assert maker().answer_parameters() == {}
    wanted = maker("json_schema").answer_parameters()["response_format"]
    assert set(wanted["json_schema"]["schema"]["properties"]) == {"instruction", "input", "output"}
    assert "JSON" in maker("json_schema").make(0).text


def reason(instruction: str, output: str = "The Ucayali is the longest.") -> str | None:
    rules = AnswerReader(FilterSettings.resolve({"strategy": "evolve"}), first_number=1)
    ((_, found),) = rules.read(f" {instruction}\n1. Input:\n<noinput>\n1. Output:\n{output}", "stop")
    return found


@pytest.mark.parametrize(
    ("instruction", "output", "found"),
    [
        ("Name the longest river of Peru.", "The Ucayali.", None),
        ("Rewritten prompt: name the longest river.", "The Ucayali.", "prompt_leak"),
        ("Make the given task harder by naming rivers.", "The Ucayali.", "prompt_leak"),
        ("#New Prompt# Name the longest river.", "The Ucayali.", "starts_with_punctuation"),
        ("Answer this: #New Prompt# name the river.", "The Ucayali.", "prompt_leak"),
        ("Name the longest river of Peru.", "Here is the evolved instruction: which river?", "prompt_leak"),
        ("Follow the given instructions to fold a boat.", "Fold it.", None),
        ("Name the longest river of Peru.", "I'm sorry, but I do not know.", "refused"),
        ("Name the longest river of Peru.", "As an AI I have not seen it.", "refused"),
        ("Write an apology to a neighbour.", "Dear neighbour, " + "I made noise. " * 40 + "I am sorry.", None),
        ("Write an apology to a neighbour.", "I am sorry. " + "I made noise. " * 40, None),
        ("Write an apology to a neighbour.", "Dear neighbour, " + "I made noise. " * 10 + "I am sorry.", None),
        ("Name the longest river of Peru.", "...", "empty_output"),
        ("Name three rivers", "The Ucayali.", "too_short"),
    ],
)
def test_failed_rewritings_are_known(instruction: str, output: str, found: str | None) -> None:
    assert reason(instruction, output) == found


def test_only_evolution_looks_for_them() -> None:
    entry = Entry("", "Name the source task of this.", "", "I'm sorry, no.")
    assert EntryFilter(FilterSettings()).reason(entry) is None
