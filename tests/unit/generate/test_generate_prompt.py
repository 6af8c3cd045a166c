from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.generate.json_form import parse_json
from alpaca_ray.generate.parse import parse_answer
from alpaca_ray.generate.prompt import PromptMaker, eligible_seeds, encode, load_header
from alpaca_ray.records import read_seed_tasks

TASKS = [
    {"id": "a", "instruction": "Name  a\nriver: ", "input": "", "output": "The Ucayali"},
    {"id": "b", "instruction": "Add the numbers.", "input": "3 and 4", "output": "7"},
]


def test_the_numbered_form_is_the_originals() -> None:
    assert encode("HEAD\n", TASKS) == (
        "HEAD\n\n"
        "###\n1. Instruction: Name a river\n1. Input:\n<noinput>\n1. Output:\nThe Ucayali\n"
        "###\n2. Instruction: Add the numbers.\n2. Input:\n3 and 4\n2. Output:\n7\n"
        "###\n3. Instruction:"
    )


def test_what_is_encoded_is_what_the_parser_reads() -> None:
    tasks = [task for task in read_seed_tasks("seeds") if "###" not in task["output"]]
    text = encode("", [TASKS[0], *tasks]).split("2. Instruction:", 1)[1].rsplit("###", 1)[0]
    entries = parse_answer(text, first_number=2, finish_reason="stop")
    assert [(entry.input, entry.output) for entry in entries] == [
        (task["input"].strip(), task["output"].strip()) for task in tasks
    ]


def test_a_request_number_fixes_its_prompt() -> None:
    seeds = read_seed_tasks("seeds")
    first, again, other = (PromptMaker("head", seeds, 3, seed) for seed in (1, 1, 2))
    prompts = [first.make(number) for number in range(20)]
    assert prompts == [again.make(number) for number in range(20)]
    assert [prompt.digest for prompt in prompts] != [other.make(number).digest for number in range(20)]
    assert len({prompt.digest for prompt in prompts}) == 20
    assert all(len(set(prompt.seed_ids)) == 3 for prompt in prompts)


def test_prompts_do_not_change_between_versions() -> None:
    """A journal is resumed by later versions too: the choice for a seed and a number must stay as it is."""
    seeds = [{"id": number, "instruction": f"task {number}", "output": "x"} for number in range(50)]
    maker = PromptMaker("", seeds, 3, 42)
    assert [maker.make(number).seed_ids for number in (0, 1, 1000)] == [
        ["6", "46", "25"],
        ["9", "37", "28"],
        ["22", "48", "34"],
    ]


POOL = [{"instruction": f"Kept task {place}", "output": "x"} for place in range(40)]


def test_machine_examples_take_places_of_seed_tasks() -> None:
    seeds = read_seed_tasks("seeds")
    maker = PromptMaker("head", seeds, 8, 42, machine=2)
    orders = set()
    for number in range(30):
        drawn = maker.draw(number, POOL)
        assert drawn == maker.draw(number, POOL)
        prompt = maker.make(number, drawn)
        kinds = [identifier.startswith("machine:") for identifier in prompt.seed_ids]
        assert (len(kinds), sum(kinds), len(set(prompt.seed_ids))) == (8, 2, 8)
        orders.add(tuple(kinds))
        for record in drawn:
            place = int(record["id"].removeprefix("machine:"))
            assert record == {"id": f"machine:{place}", "instruction": f"Kept task {place}", "input": "", "output": "x"}
            assert f". Instruction: Kept task {place}\n" in prompt.text
    assert len(orders) > 10, "their places are drawn too"
    assert len({str(maker.draw(number, POOL)) for number in range(30)}) > 20


def test_seed_tasks_fill_the_places_of_missing_machine_examples() -> None:
    seeds = read_seed_tasks("seeds")
    maker, without = PromptMaker("head", seeds, 3, 42, machine=2), PromptMaker("head", seeds, 3, 42)
    assert maker.draw(0, []) == []
    assert maker.make(0, []) == without.make(0)
    (only,) = maker.draw(0, POOL[:1])
    assert sum(identifier == only["id"] for identifier in maker.make(0, [only]).seed_ids) == 1
    assert len(maker.make(0, [only]).seed_ids) == 3
    assert maker.draws
    assert not without.draws


def test_records_that_would_break_the_form_or_the_limit_are_not_shown() -> None:
    pool = [{"instruction": "a " * 30, "output": "x"}, {"instruction": "b", "output": "### x"}, POOL[0]]
    maker = PromptMaker("", read_seed_tasks("seeds"), 3, 1, machine=2, max_words=20)
    assert [record["id"] for record in maker.draw(0, pool)] == ["machine:2"]
    as_json = PromptMaker("", read_seed_tasks("seeds"), 3, 1, "json_schema", machine=2, max_words=20)
    assert {record["id"] for record in as_json.draw(0, pool)} == {"machine:1", "machine:2"}


def test_a_prompt_for_json() -> None:
    header = load_header("full", 20, 17, response_format="json_schema")
    assert "17 tasks" in header
    assert "{" not in header
    maker = PromptMaker(header, read_seed_tasks("seeds"), 3, 42, "json_schema", new_tasks=17)
    prompt = maker.make(0)
    assert len(parse_json(prompt.text, finish_reason="stop")) == 3
    assert "17 new tasks" in prompt.text
    assert "tasks" in maker.answer_parameters()["response_format"]["json_schema"]["schema"]["properties"]
    assert PromptMaker("", read_seed_tasks("seeds"), 3, 42).answer_parameters() == {}


def test_evolution_has_a_header_of_its_own() -> None:
    for form in ("text", "json_schema"):
        assert "{operator}" in load_header("short", 20, strategy="evolve", response_format=form)


@pytest.mark.parametrize("name", ["full", "short"])
def test_shipped_headers_name_the_number_of_tasks(name: str) -> None:
    header = load_header(name, 17)
    assert "17" in header
    assert "{" not in header


def test_a_header_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Make {num_tasks} tasks {exactly}.\n")
    assert load_header(str(tmp_path / "mine.txt"), 5) == "Make 5 tasks {exactly}.\n"
    with pytest.raises(DataError, match=r"--prompt_header .*absent\.txt: No such file"):
        load_header(str(tmp_path / "absent.txt"), 5)


def test_only_short_seeds_may_serve_as_examples() -> None:
    seeds = read_seed_tasks("seeds")
    short = eligible_seeds(seeds, examples=2, max_words=20)
    assert 2 <= len(short) < len(seeds)
    for task in short:
        assert len(f"{task['instruction']} {task['input']} {task['output']}".split()) <= 20
    with pytest.raises(DataError, match=r"only 0 seed tasks of at most 1 words \(--max_example_words\)"):
        eligible_seeds(seeds, examples=2, max_words=1)
