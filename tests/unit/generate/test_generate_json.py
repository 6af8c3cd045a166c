from __future__ import annotations

import json
import random
from typing import Any

import pytest

from alpaca_ray.generate.answers import AnswerReader
from alpaca_ray.generate.json_form import encode_json, parse_json, response_format
from alpaca_ray.settings.filters import FilterSettings

TASKS = [
    {"instruction": "Name a river of Peru.", "input": "", "output": "The [Ucayali] {long}"},
    {"instruction": "Add the numbers up.", "input": '3 and "4"\n', "output": "7\\"},
    {"instruction": "列出三条河流。", "input": "<noinput>", "output": '{"instruction": "no task"}'},
]
READ = [(task["instruction"], task["input"].strip().replace("<noinput>", ""), task["output"]) for task in TASKS]


def read(text: str, finish_reason: str | None = "stop") -> list[Any]:
    return [
        entry.problem or (entry.instruction, entry.input, entry.output)
        for entry in parse_json(text, finish_reason=finish_reason)
    ]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"tasks": TASKS}),
        json.dumps({"tasks": TASKS}, ensure_ascii=False, indent=2),
        json.dumps({"new": TASKS, "count": 3}),
        json.dumps({"count": 3, "new": TASKS}),
        json.dumps(TASKS),
        f"Here are [3] tasks:\n```json\n{json.dumps({'tasks': TASKS})}\n```\nThat is all {{}}.",
    ],
)
def test_the_forms_of_a_whole_answer(text: str) -> None:
    assert read(text) == READ
    assert read(text, "length") == READ, "nothing of it was cut"


@pytest.mark.parametrize("wrap", [lambda task: task, lambda task: {"task": task}])
def test_a_single_task(wrap: Any) -> None:
    assert read(json.dumps(wrap(TASKS[1]))) == [READ[1]]


@pytest.mark.parametrize(
    ("opening", "closing"), [('{"tasks": [', "]}"), ("[\n", "\n]"), ('```json\n{ "a": [', "]}\n```")]
)
def test_every_whole_task_of_an_answer_that_was_cut(opening: str, closing: str) -> None:
    """Cut anywhere: the tasks that end before the cut are kept, and one more entry tells of the rest."""
    parts = [json.dumps(task) for task in TASKS]
    text = opening + ", ".join(parts) + closing
    for cut in range(len(opening), len(text)):
        begun = sum(text.index(part) < cut for part in parts)
        whole = sum(text.index(part) + len(part) <= cut for part in parts)
        rest = ["truncated"] if begun > whole or not whole else []
        assert read(text[:cut], "length") == READ[:whole] + rest


def test_a_broken_task_costs_no_other() -> None:
    first, second, third = (json.dumps(task, ensure_ascii=False) for task in TASKS)
    text = f'{{"tasks": [{first}, {second[:-1]}, oops}}, {third}]}}'
    assert read(text) == [READ[0], "unparsable", READ[2]]


def test_line_breaks_within_a_text() -> None:
    assert read('{"tasks": [{"instruction": "Name a\nriver", "output": "x"}]}') == [("Name a\nriver", "", "x")]


@pytest.mark.parametrize(
    ("text", "finish_reason", "problem"),
    [
        ("", "stop", "unparsable"),
        ("", "length", "truncated"),
        ("I cannot do that.", "stop", "unparsable"),
        ("{", "length", "truncated"),
        ('{"tasks": []}', "stop", "unparsable"),
        ('{"tasks": ["Name a river."]}', "stop", "unparsable"),
        ('{"tasks": [{"instruction": "x"}]}', "stop", "unparsable"),
        ('{"tasks": [{"instruction": "x", "output": {"y": 1}}]}', "stop", "unparsable"),
        ('{"instruction": "Fill [the] {gap', "length", "truncated"),
    ],
)
def test_what_holds_no_task_is_one_entry(text: str, finish_reason: str, problem: str) -> None:
    (entry,) = parse_json(text, finish_reason=finish_reason)
    assert entry.problem == problem


def test_values_that_are_no_text() -> None:
    text = '{"tasks": [{"instruction": "Add 3 and 4.", "input": null, "output": 7}]}'
    assert read(text) == [("Add 3 and 4.", "", "7")]


def test_random_text_is_never_fatal() -> None:
    rng = random.Random(3)
    pieces = (
        '{"tasks": [',
        '{"instruction": "a"',
        ', "output": "b"',
        "}",
        "]",
        "{",
        "[",
        ",",
        '"',
        "\\",
        "word",
        "\n",
        "1",
    )
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 20)))
        for finish_reason in ("stop", "length"):
            assert parse_json(text, finish_reason=finish_reason)


def test_the_schema_keeps_to_strict_mode() -> None:
    def check(schema: dict[str, Any]) -> None:
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])
            for value in schema["properties"].values():
                check(value)
        elif schema["type"] == "array":
            check(schema["items"])

    for single in (True, False):
        wanted = response_format(single=single)
        assert (wanted["type"], wanted["json_schema"]["strict"]) == ("json_schema", True)
        check(wanted["json_schema"]["schema"])
        assert ("tasks" in wanted["json_schema"]["schema"]["properties"]) != single


def test_examples_are_shown_in_the_form_of_an_answer() -> None:
    text = encode_json("HEAD", TASKS[:2], 5)
    assert text.startswith("HEAD\n{")
    assert "5 new tasks" in text
    assert read(text) == [(one, given.strip(), output) for one, given, output in READ[:2]]
    assert "1 new task," in encode_json("HEAD", TASKS[:2], 1)


def test_the_filters_hold_for_json_too() -> None:
    reader = AnswerReader(FilterSettings.resolve({"response_format": "json_schema"}), first_number=4)
    tasks = [TASKS[0], {**TASKS[0], "output": " "}, {**TASKS[0], "instruction": "Draw it"}]
    found = [reason for _, reason in reader.read("<think>{[</think>" + json.dumps({"tasks": tasks}), "stop")]
    assert found == [None, "empty_output", "too_short"]
