from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.folder import earlier_metric, fingerprint, inspect, read_regen, write_results
from alpaca_ray.generate.journal import Header, Journal, Outcome
from alpaca_ray.generate.sent import SentLog
from alpaca_ray.generate.store import RowStore

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


def sent(folder: Path, *numbers: int) -> None:
    folder.mkdir(exist_ok=True)
    log = SentLog()
    log.open(folder / "sent.jsonl")
    log.sent([(number, Tokens(10, 100)) for number in numbers])
    log.close()


def test_an_empty_or_foreign_folder_is_new(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        assert inspect(tmp_path, resume=resume, overwrite=False).total == 0
    assert inspect(tmp_path / "absent", resume=False, overwrite=False).total == 0


@pytest.mark.parametrize("resume", [False, True])
def test_regen_alone_is_taken_up(tmp_path: Path, resume: bool) -> None:
    regen(tmp_path)
    (tmp_path / "seed_tasks.jsonl").write_text("")
    state = inspect(tmp_path, resume=resume, overwrite=False)
    assert list(state.initial) == RECORDS
    assert state.total == len(RECORDS)
    assert state.header is None


def test_a_used_folder_needs_a_flag(tmp_path: Path) -> None:
    regen(tmp_path)
    journal(tmp_path, initial=1)
    with pytest.raises(OutputError, match=r"already holds journal\.jsonl: give --resume to go on, --overwrite"):
        inspect(tmp_path, resume=False, overwrite=False)
    assert inspect(tmp_path, resume=False, overwrite=True).total == 0
    state = inspect(tmp_path, resume=True, overwrite=False)
    assert (list(state.initial), state.total, len(state.outcomes)) == (RECORDS[:1], 2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "regen.json"]


def test_a_run_killed_before_its_first_line_starts_anew(tmp_path: Path) -> None:
    regen(tmp_path)
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "sett')
    assert list(inspect(tmp_path, resume=True, overwrite=False).initial) == RECORDS


def test_a_run_killed_before_its_first_answer_knows_what_it_sent(tmp_path: Path) -> None:
    regen(tmp_path)
    sent(tmp_path, 0, 1)
    for text in (None, '{"journal": 1, "sett'):
        if text is not None:
            (tmp_path / "journal.jsonl").write_text(text)
        with pytest.raises(OutputError, match=r"already holds .*give --resume to go on"):
            inspect(tmp_path, resume=False, overwrite=False)
        state = inspect(tmp_path, resume=True, overwrite=False)
        assert (list(state.initial), state.header, state.lost) == (RECORDS, None, Tokens(20, 200))


def test_what_was_sent_and_not_answered_counts_in_full(tmp_path: Path) -> None:
    journal(tmp_path)
    sent(tmp_path, 0, 1, 2)
    assert inspect(tmp_path, resume=True, overwrite=False).lost == Tokens(20, 200)
    assert inspect(tmp_path, resume=False, overwrite=True).lost == Tokens(), "another run"


def test_a_replay_needs_a_journal(tmp_path: Path) -> None:
    def look() -> Any:
        return inspect(tmp_path, resume=False, overwrite=False, replay=True)

    with pytest.raises(OutputError, match=r"--replay: .*holds no journal\.jsonl"):
        look()
    regen(tmp_path)
    with pytest.raises(OutputError, match=r"--replay: .*holds no journal\.jsonl"):
        look()
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "sett')
    with pytest.raises(OutputError, match=r"--replay: .*journal\.jsonl.*no complete first line"):
        look()
    (tmp_path / "journal.jsonl").unlink()
    journal(tmp_path, initial=1)
    assert [outcome.request_id for outcome in look().outcomes] == [0]


def test_another_run_that_writes_changes_the_fingerprint(tmp_path: Path) -> None:
    journal(tmp_path)
    sent(tmp_path)
    before = fingerprint(tmp_path)
    assert {name for name, *_ in before} == {"journal.jsonl", "sent.jsonl"}
    (tmp_path / "notes.txt").write_text("mine")
    assert fingerprint(tmp_path) == before
    sent(tmp_path, 1)
    assert fingerprint(tmp_path) != before


def test_results_are_read_back(tmp_path: Path) -> None:
    rejected = [{"instruction": "x\u2028y", "reason": "too_short"}]
    stores = []
    for rows in (RECORDS, rejected):
        store = RowStore(tmp_path)
        for row in rows:
            store.append(row)
        stores.append(store)
    write_results(tmp_path, *stores, {"seconds": 1.5, "target": 7})
    assert list(read_regen(tmp_path / "regen.json")) == RECORDS
    rows = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(row) for row in rows] == rejected
    assert (earlier_metric(tmp_path, "seconds"), earlier_metric(tmp_path, "target")) == (1.5, 7.0)
    assert earlier_metric(tmp_path, "absent") is None
    (tmp_path / "metrics.json").write_text("{")
    assert earlier_metric(tmp_path, "seconds") is None
    assert earlier_metric(tmp_path / "absent", "seconds") is None


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
        list(read_regen(tmp_path / "regen.json"))
