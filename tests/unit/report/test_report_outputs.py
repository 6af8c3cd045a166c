"""A report replaces and deletes what an earlier report wrote, and nothing else, wherever it is made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from alpaca_ray.errors import OutputError
from alpaca_ray.report import outputs
from alpaca_ray.report.outputs import LEDGER, Outputs
from alpaca_ray.report.run import write_report
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.report import ReportSettings
from alpaca_ray.storage import write_atomic

RECORDS = [{"instruction": "Name a river.", "output": "Rhine"}, {"instruction": "Name a lake.", "output": "Como"}]
FLAGS = ("--tokenizer", "words", "--max_parsed", "0")


def report(*arguments: object) -> Path:
    return write_report(parse_settings(ReportSettings, [*map(str, arguments), *FLAGS], description=""))


def jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "regen.json").write_text(json.dumps(RECORDS))
    (folder / "metrics.json").write_text(json.dumps({"kept": 2, "errors": {"timeout": 1}}))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_report_replaces_the_first_and_nothing_else(stage: Path) -> None:
    (stage / "figures").mkdir()
    (stage / "figures" / "mine.png").write_bytes(b"mine")
    (stage / "figures" / "mine.txt").write_text("mine")
    before = content(stage)
    report(stage)
    first = content(stage)
    assert {name: first[name] for name in before} == before
    assert {"figures/failures.png", "report.html", "README.md", LEDGER} <= set(first)
    (stage / "metrics.json").write_text(json.dumps({"kept": 2}))
    report(stage, "--title", "Rivers")
    second = content(stage)
    assert set(second) == set(first) - {"figures/failures.png"}
    assert second["figures/mine.png"] == b"mine"
    assert b"Rivers" in second["report.html"]
    assert b"Rivers" in second["README.md"]


def test_a_figure_that_somebody_changed_stays(stage: Path) -> None:
    report(stage)
    (stage / "figures" / "failures.png").write_bytes(b"drawn over")
    (stage / "metrics.json").unlink()
    report(stage)
    assert (stage / "figures" / "failures.png").read_bytes() == b"drawn over"
    report(stage)
    assert (stage / "figures" / "failures.png").read_bytes() == b"drawn over"


@pytest.mark.parametrize("name", ["report.html", "data/train.jsonl", "figures/coverage.png", LEDGER])
@pytest.mark.parametrize("after_a_report", [False, True])
def test_a_file_of_somebodys_own_is_not_lost(stage: Path, name: str, after_a_report: bool) -> None:
    if after_a_report:
        report(stage)
    (stage / name).parent.mkdir(exist_ok=True)
    (stage / name).write_text("mine")
    before = content(stage)
    with pytest.raises(OutputError) as caught:
        report(stage)
    assert str(caught.value).startswith(f"--output_dir {stage}: its {name} is no")
    assert "move it away, or give another folder" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert content(stage) == before


@pytest.mark.parametrize(
    "ledger",
    [
        {"files": {}},
        {"written_by": "alpaca_ray, jobs/report.py"},
        {"written_by": "alpaca_ray, jobs/report.py", "files": {"a": 5}},
        {"written_by": "alpaca_ray, jobs/report.py", "files": {"../a": []}},
        {"written_by": "alpaca_ray, jobs/report.py", "files": {"/a": []}},
    ],
)
def test_a_ledger_that_is_none_is_not_believed(tmp_path: Path, ledger: Any) -> None:
    (tmp_path / LEDGER).write_text(json.dumps(ledger))
    with pytest.raises(OutputError, match="is no list of a report's files"):
        Outputs(tmp_path)


def test_a_readme_of_somebody_stays_and_so_does_a_card_that_was_edited(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stage / "README.md").write_text("# mine")
    report(stage)
    assert (stage / "README.md").read_text() == "# mine"
    assert "size_categories" in (stage / "DATASET_CARD.md").read_text(encoding="utf-8")
    assert "README.md is not as a report wrote it and stays: the card is DATASET_CARD.md" in capsys.readouterr().out
    (stage / "README.md").unlink()
    report(stage)
    assert "size_categories" in (stage / "README.md").read_text(encoding="utf-8")
    assert not (stage / "DATASET_CARD.md").exists(), "two cards would not stay the same"
    with (stage / "README.md").open("a") as card:
        card.write("My own words.\n")
    report(stage)
    assert "My own words." in (stage / "README.md").read_text(encoding="utf-8")
    (stage / "DATASET_CARD.md").write_text("mine too")
    with pytest.raises(OutputError, match=r"its DATASET_CARD\.md is not as a report wrote it"):
        report(stage)


def test_the_input_is_never_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = tmp_path / "data" / "train.jsonl"
    train.parent.mkdir()
    train.write_text(jsonl(RECORDS))
    before = content(tmp_path)
    for given in ("data/train.jsonl", f"file://{train}"):
        with pytest.raises(OutputError, match=r"its data/train\.jsonl is what this report reads"):
            report(given, "--output_dir", ".")
    assert content(tmp_path) == before


def test_nor_is_a_report_of_ours_that_is_read_again(stage: Path, tmp_path: Path) -> None:
    train = report(stage) / "data" / "train.jsonl"
    before = content(stage)
    with pytest.raises(OutputError, match="is what this report reads"):
        report(train, "--output_dir", stage)
    (stage / "run.json").write_text(json.dumps({"data_file": "data/train.jsonl"}))
    with pytest.raises(OutputError, match="is what this report reads"):
        report(stage)
    (stage / "run.json").unlink()
    os.link(train, tmp_path / "linked.jsonl")
    with pytest.raises(OutputError, match="is what this report reads"):
        report(tmp_path / "linked.jsonl", "--output_dir", stage)
    assert content(stage) == before
    again = report(train, "--output_dir", tmp_path / "again")
    assert (again / "data" / "train.jsonl").read_bytes() == train.read_bytes()


def test_a_report_that_was_stopped_half_way_is_gone_on_from(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(stage)

    def full(path: Path, content: Any) -> None:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        write_atomic(path, content)

    (stage / "regen.json").write_text(json.dumps(RECORDS[:1]))
    monkeypatch.setattr(outputs, "write_atomic", full)
    with pytest.raises(OutputError, match="No space left"):
        report(stage)
    monkeypatch.undo()
    assert len(content(stage)["data/train.jsonl"].splitlines()) == 1, "of the new report"
    assert b"2 instruction records" in content(stage)["README.md"], "of the old one"
    report(stage)
    assert not (stage / "DATASET_CARD.md").exists()
    assert b"1 instruction record" in content(stage)["README.md"]
    assert b"1 instruction record" in content(stage)["report.html"]


def test_what_another_report_wrote_meanwhile_is_known(tmp_path: Path) -> None:
    first, second = Outputs(tmp_path), Outputs(tmp_path)
    second.publish({"a": lambda: [b"1"], "b": lambda: [b"2"]}, None)
    first.publish({"b": lambda: [b"3", b"4"]}, None)
    assert {name: text for name, text in content(tmp_path).items() if name != LEDGER} == {"b": b"34"}


def test_a_second_report_at_the_same_time_is_told(stage: Path) -> None:
    report(stage)
    before = content(stage)
    with FileLock(stage / ".report.lock"), pytest.raises(OutputError, match="another report is being written there"):
        report(stage, "--title", "Rivers")
    (stage / ".report.lock").unlink(missing_ok=True)
    assert content(stage) == before
    report(stage, "--title", "Rivers")
    assert set(content(stage)) == set(before), "the lock is gone"


def test_a_file_where_a_folder_must_be(stage: Path) -> None:
    (stage / "figures").write_text("mine")
    with pytest.raises(OutputError, match="figures in it is no folder: move it away"):
        report(stage)
    assert (stage / "figures").read_text() == "mine"
    assert not (stage / "report.html").exists()


def test_a_link_that_leads_nowhere_is_somebodys(stage: Path) -> None:
    (stage / "report.html").symlink_to(stage / "gone.html")
    with pytest.raises(OutputError, match=r"its report\.html is not as a report wrote it"):
        report(stage)
    assert (stage / "report.html").is_symlink()
