from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.generate.folder import answer_settings, check_same, inspect, read_regen
from alpaca_ray.generate.journal import Header, Journal, Outcome
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.settings.generate import GenerateSettings

RECORDS = [
    {"instruction": "Name a river.", "input": "", "output": "The Ucayali", "avg_similarity_score": 0.1, "mine": [1]},
    {"instruction": "Name a lake.", "input": "", "output": "Titicaca"},
]


def regen(folder: Path, records: Any = RECORDS) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "regen.json").write_text(json.dumps(records))


def journal(folder: Path, initial: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    found = Journal(folder / "journal.jsonl")
    found.write_header(Header({"model_name": "m"}, initial))
    found.append([Outcome(0, [], "", "m", "text")])
    found.close()


def test_an_empty_or_foreign_folder_is_new(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        assert inspect(tmp_path, resume=resume, overwrite=False).records == []
    assert inspect(tmp_path / "absent", resume=False, overwrite=False).records == []


@pytest.mark.parametrize("resume", [False, True])
def test_regen_alone_is_taken_up(tmp_path: Path, resume: bool) -> None:
    regen(tmp_path)
    (tmp_path / "seed_tasks.jsonl").write_text("")
    state = inspect(tmp_path, resume=resume, overwrite=False)
    assert state.records == state.initial == RECORDS
    assert state.header is None


def test_a_used_folder_needs_a_flag(tmp_path: Path) -> None:
    regen(tmp_path)
    journal(tmp_path, initial=1)
    with pytest.raises(OutputError, match=r"already holds journal\.jsonl: give --resume to go on, --overwrite"):
        inspect(tmp_path, resume=False, overwrite=False)
    assert inspect(tmp_path, resume=False, overwrite=True).records == []
    state = inspect(tmp_path, resume=True, overwrite=False)
    assert (state.initial, len(state.records), len(state.outcomes)) == (RECORDS[:1], 2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "regen.json"]


def test_a_run_killed_before_its_first_line_starts_anew(tmp_path: Path) -> None:
    regen(tmp_path)
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "sett')
    assert inspect(tmp_path, resume=True, overwrite=False).initial == RECORDS


def test_a_run_json_without_a_journal_cannot_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"stage": "generate"}')
    with pytest.raises(OutputError, match=r"holds run\.json but no journal\.jsonl"):
        inspect(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize(("content", "stage"), [('{"stage": "train"}', "train"), ("{}", "unnamed")])
def test_another_stages_folder_is_left_alone(tmp_path: Path, flags: dict[str, bool], content: str, stage: str) -> None:
    regen(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OutputError, match=rf"run\.json is of another stage \({stage}\)"):
        inspect(tmp_path, **{"resume": False, "overwrite": False, **flags})
    assert (tmp_path / "run.json").read_text() == content


def test_records_from_before_the_run_must_still_be_there(tmp_path: Path) -> None:
    journal(tmp_path, initial=2)
    with pytest.raises(OutputError, match="held 2 records before this run began, and now has 0"):
        inspect(tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"instruction": "x"},\n {"a"]', "line 2: not valid JSON"),
        ('{"instruction": "x"}', "must hold a JSON list"),
        ('[{"instruction": "x"}, {"input": ""}]', "record 1: has no 'instruction'"),
    ],
)
def test_a_damaged_regen_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "regen.json").write_text(text)
    with pytest.raises(DataError, match=rf"regen\.json.*{words}"):
        read_regen(tmp_path / "regen.json")


def header_settings(**given: Any) -> dict[str, Any]:
    settings = GenerateSettings.resolve({"base_url": "http://127.0.0.1:1/v1", **given})
    port = given.get("base_url", "http://127.0.0.1:1/v1")
    teacher = Teacher(port, "m", "completions", "KEY")
    return answer_settings(settings, teacher, "header", [{"instruction": "x", "input": "", "output": "y"}])


def test_settings_that_differ_are_named_with_both_values(tmp_path: Path) -> None:
    header = Header(header_settings())
    check_same(header, header_settings(num_instructions_to_generate=7, max_in_flight=3, request_batch_size=2), tmp_path)
    check_same(header, header_settings(base_url="http://localhost:99/v1".replace("localhost", "127.0.0.1")), tmp_path)
    with pytest.raises(OutputError) as raised:
        check_same(header, header_settings(temperature=0.5, seed=1), tmp_path)
    assert "--seed (there 42, now 1), --temperature (there 1.0, now 0.5)" in str(raised.value)
    with pytest.raises(OutputError, match="--base_url"):
        check_same(header, header_settings(base_url="https://example.org/v1"), tmp_path)


def test_the_journals_header_survives_json() -> None:
    assert json.loads(json.dumps(header_settings())) == header_settings()
