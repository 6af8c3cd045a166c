"""The output folder: whose files it may hold, and what a run that fails while it publishes leaves behind."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dedup_support import FILES, lines, run, save, some_records

from alpaca_ray.dedup import folder as dedup_folder
from alpaca_ray.dedup import pipeline, unfinished
from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.manifest import file_digest
from alpaca_ray.records import read_records


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["journal.jsonl", "sent.jsonl", "regen.json"])
def test_an_unfinished_generation_folder_is_refused(tmp_path: Path, name: str) -> None:
    data = save(tmp_path / "d.json", some_records(1, 5))
    folder = tmp_path / "gen"
    folder.mkdir()
    for other in (name, "metrics.json", "rejected.jsonl"):
        (folder / other).write_text("[]")
    before = contents(folder)
    with pytest.raises(OutputError, match=rf"its {name.replace('.', '[.]')} is of a generation run"):
        run(folder, data, overwrite=True)
    assert contents(folder) == before


def test_what_is_read_is_never_written(tmp_path: Path) -> None:
    other = save(tmp_path / "other.jsonl", some_records(2, 20))
    folder = tmp_path / "same"
    folder.mkdir()
    kept = save(folder / "kept.jsonl", some_records(1, 20))
    (tmp_path / "link.jsonl").symlink_to(kept)
    (tmp_path / "li%6ek#.jsonl").symlink_to(kept)  # a file's address stands for itself
    before = contents(folder)
    for source in (
        kept,
        str(folder),
        str(tmp_path / "link.jsonl"),
        f"file://{kept}",
        f"file://{tmp_path}/li%6ek#.jsonl",
    ):
        with pytest.raises(OutputError, match=r"^--data_path .*: is kept\.jsonl of --output_dir"):
            run(folder, other, source, overwrite=True)
    for flag, given in (("seed_tasks_path", kept), ("decontaminate", [kept])):
        with pytest.raises(OutputError, match=rf"^--{flag} .*: is kept\.jsonl of --output_dir"):
            run(folder, other, overwrite=True, **{flag: given})
    assert contents(folder) == before


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "No such file"), ("", "Is a directory")])
def test_an_address_of_no_file_is_one_line_and_leaves_nothing(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"^file://.*/{name}: cannot be read: {words}"):
        run(tmp_path / "out", f"file://{tmp_path}/{name}")
    assert not (tmp_path / "out").exists()


def test_a_files_address_is_read_as_it_stands(tmp_path: Path) -> None:
    for name in ("a b.jsonl", "a%20b.jsonl", "a#b.jsonl"):
        records = some_records(len(name), 5)
        source = save(tmp_path / name, records)
        folder = run(tmp_path / f"out {name}", f"file://{source}")
        assert (folder / "kept.jsonl").read_bytes() == (
            run(tmp_path / "plain", source, overwrite=True) / "kept.jsonl"
        ).read_bytes()


def test_inputs_are_described_as_they_were_read(tmp_path: Path) -> None:
    source = save(tmp_path / "d.jsonl", some_records(1, 20))
    manifest = json.loads((run(tmp_path / "out", source) / "run.json").read_text())
    assert manifest["inputs"] == [{"name": source, "file": source, "sha256": file_digest(Path(source))}]
    assert manifest["outputs"] == {
        name: file_digest(tmp_path / "out" / name) for name in ("kept.jsonl", "rejected.jsonl", "metrics.json")
    }


def test_a_broken_manifest_beside_an_input_is_found_before_anything_is_written(tmp_path: Path) -> None:
    source = save(tmp_path / "d.jsonl", some_records(1, 20))
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(DataError, match=r"run\.json: must hold a JSON object"):
        run(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("full_at", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_earlier_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "out", save(tmp_path / "a.jsonl", some_records(1, 20)))
    before = contents(folder)
    other = save(tmp_path / "b.jsonl", some_records(2, 30))
    synced = 0
    real = os.fsync

    def full(descriptor: int) -> None:
        nonlocal synced
        if synced == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced += 1
        real(descriptor)

    with monkeypatch.context() as patch:
        # The identity's own file and folder come first, then the records: whichever write it is, nothing is published.
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            run(folder, other, overwrite=True)
    assert contents(folder) == before
    run(folder, other, overwrite=True)
    assert contents(folder).keys() == FILES


def test_a_move_that_fails_is_made_up_for_by_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "a.jsonl", some_records(1, 40))
    wanted = contents(run(tmp_path / "whole", source))
    folder = run(tmp_path / "out", save(tmp_path / "b.jsonl", some_records(2, 10)))
    real = os.replace

    def fails(old: Any, new: Any) -> None:
        if Path(new) == folder / "metrics.json":
            raise OSError(errno.EIO, "Input/output error")
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OutputError, match="Input/output error"):
            run(folder, source, overwrite=True)
    assert not (folder / "run.json").exists(), "a folder that is half old and half new is not complete"
    with pytest.raises(OutputError, match=r"unfinished run \(all is decided"):
        run(folder, source)
    run(folder, source, resume=True)
    found = contents(folder)
    assert found.keys() == FILES
    assert {name: found[name] for name in ("kept.jsonl", "rejected.jsonl")} == {
        name: wanted[name] for name in ("kept.jsonl", "rejected.jsonl")
    }
    assert json.loads(found["metrics.json"])["records"] == 40
    assert json.loads(found["run.json"])["outputs"]["metrics.json"] == file_digest(folder / "metrics.json")


def test_the_folder_is_checked_again_once_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may start and end between the first look and the lock."""
    first, second = (save(tmp_path / f"{n}.jsonl", some_records(n, 20)) for n in (1, 2))
    plain = pipeline.run

    def late(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(pipeline, "run", plain)
        run(tmp_path / "out", first)
        return plain(*given, **named)

    monkeypatch.setattr(pipeline, "run", late)
    with pytest.raises(OutputError, match=r"already holds kept\.jsonl"):
        run(tmp_path / "out", second)
    kept = [record["mine"] for record in lines(tmp_path / "out" / "kept.jsonl")]
    assert kept == [record["mine"] for record in lines(run(tmp_path / "alone", first) / "kept.jsonl")]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for name in (unfinished.FOLDER, f"{unfinished.FOLDER}.k3j2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "kept.jsonl").write_text("{}\n")
    run(folder, save(tmp_path / "d.jsonl", some_records(1, 20)))
    assert {path.name for path in folder.iterdir()} == FILES


def test_lone_surrogates_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text(
        '{"instruction": "a \\ud83d b c d", "input": "x", "output": "\\udc00"}\n' * 2 + '{"instruction": "e f g"}\n'
    )
    folder = run(tmp_path / "out", str(source))
    assert b'"a \\ud83d b c d"' in (folder / "kept.jsonl").read_bytes()
    assert lines(folder / "rejected.jsonl")[0]["instruction"] == "a \ud83d b c d"
    assert read_records(str(folder), need_output=False)[0]["output"] == "\udc00"
    assert len(lines(run(tmp_path / "again", str(folder)) / "kept.jsonl")) == 2


def test_values_that_json_has_no_form_for_name_the_record(tmp_path: Path) -> None:
    import datetime

    good = {"instruction": "a b c d", "output": "x"}
    for name, record, message in (
        ("o", {**good, "output": b"x"}, "record 1: cannot be written as JSON: a value of type bytes"),
        ("i", {**good, "id": 1, "image": b"x"}, "record 1: cannot be written as JSON: a value of type bytes"),
    ):
        rows = [dict.fromkeys(record) | {"instruction": "one two"}, record]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=message):
            run(tmp_path / "out", str(tmp_path / f"{name}.parquet"))
    pq.write_table(pa.Table.from_pylist([{**good, "output": datetime.date(2020, 1, 2)}]), tmp_path / "dates.parquet")
    (kept,) = lines(run(tmp_path / "out", str(tmp_path / "dates.parquet")) / "kept.jsonl")
    assert kept["output"] == "2020-01-02"


def test_a_check_touches_nothing(tmp_path: Path) -> None:
    assert dedup_folder.check_folder(tmp_path / "new", {}, overwrite=False) is None
    with pytest.raises(OutputError, match="contradict each other"):
        dedup_folder.check_folder(tmp_path / "new", {}, overwrite=True, resume=True)
    assert list(tmp_path.iterdir()) == []
