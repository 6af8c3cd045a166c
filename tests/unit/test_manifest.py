"""run.json: what it records, and how the next stage finds it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.manifest import data_file_of, describe_inputs, is_unfinished, read_manifest, write_manifest


def test_it_records_inputs_outputs_and_the_parent_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    (first / "regen.json").write_text("[1]")
    parent = write_manifest(first, "generate", settings={"a": 1}, data_file="regen.json", outputs=["regen.json"])
    write_manifest(second, "train", settings={}, inputs=[str(first), "nobody/hub-data"], seed=3, steps=4)
    content = read_manifest(second)
    assert content is not None
    digest = hashlib.sha256(b"[1]").hexdigest()
    assert content["inputs"][0]["sha256"] == digest
    assert content["inputs"][0]["parent_run"] == parent["run_id"]
    assert content["inputs"][1] == {"name": "nobody/hub-data"}
    assert (content["seed"], content["steps"], content["stage"]) == (3, 4, "train")
    assert content["versions"]["ray"]
    assert parent["outputs"] == {"regen.json": digest}


def test_a_named_data_file_that_is_gone(tmp_path: Path) -> None:
    write_manifest(tmp_path, "dedup", settings={}, data_file="kept.jsonl")
    with pytest.raises(DataError, match=r"holds no records \(kept\.jsonl\)"):
        data_file_of(tmp_path)


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json: not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}", b"\xff"])
def test_a_manifest_that_json_cannot_hold_is_named_too(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"run\.json: not valid JSON"):
        read_manifest(tmp_path)


def test_a_data_file_that_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "regen.json").write_text("[1]")
    (tmp_path / "run.json").write_text('{"data_file": 5}')
    with pytest.raises(DataError, match=r"run\.json: 'data_file' must be a text, not int$"):
        data_file_of(tmp_path)
    (tmp_path / "run.json").write_text('{"data_file": null}')
    assert data_file_of(tmp_path) == tmp_path / "regen.json"


@pytest.mark.parametrize(
    ("beside", "parent"),
    [
        ({"run_id": "a", "data_file": "mine.jsonl"}, "a"),
        ({"run_id": "a", "data_file": "other.jsonl", "outputs": {"mine.jsonl": ""}}, "a"),
        ({"run_id": "a", "data_file": "other.jsonl"}, None),
        ({"run_id": 5, "data_file": "mine.jsonl"}, None),
        ({"run_id": "a", "data_file": 5, "outputs": 5}, None),
        ("{", None),
        ("[]", None),
        (None, None),
    ],
)
def test_only_the_run_that_wrote_a_file_is_its_parent(tmp_path: Path, beside: Any, parent: str | None) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("{}")
    if beside is not None:
        (tmp_path / "run.json").write_text(beside if isinstance(beside, str) else json.dumps(beside))
    (entry,) = describe_inputs([str(file)])
    assert entry.get("parent_run") == parent
    assert entry["sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert entry["file"] == str(file)


def test_inputs_are_described_before_or_after_with_the_same_result(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.jsonl", tmp_path / "out"
    file.write_text("{}")
    out.mkdir()
    before = describe_inputs([str(file), "nobody/hub-data", "s3://bucket/x.jsonl"])
    assert before[1:] == [{"name": "nobody/hub-data"}, {"name": "s3://bucket/x.jsonl"}]
    assert write_manifest(out, "dedup", settings={}, inputs=before)["inputs"] == before
    after = write_manifest(out, "dedup", settings={}, inputs=[str(file), "nobody/hub-data", "s3://bucket/x.jsonl"])
    assert after["inputs"] == before
    file.write_text("changed since")
    assert write_manifest(out, "dedup", settings={}, inputs=before)["inputs"] == before, "what was read, not what is"


def test_an_input_in_the_home_folder_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.jsonl").write_text("{}")
    assert describe_inputs(["~/mine.jsonl"])[0]["file"] == str(tmp_path / "mine.jsonl")


def test_an_input_that_cannot_be_described_is_told_before_and_does_not_cost_the_results_after(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "run.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        describe_inputs([str(source)])
    (entry,) = write_manifest(out, "dedup", settings={}, inputs=[str(source)])["inputs"]
    assert entry["name"] == str(source)
    assert "not valid JSON" in entry["not_described"]
    assert read_manifest(out) is not None


def test_a_folder_is_unfinished_between_its_first_figures_and_its_mark(tmp_path: Path) -> None:
    found = [is_unfinished(tmp_path)]
    for name in ("metrics.json", "run.json"):
        (tmp_path / name).write_text("{}")
        found.append(is_unfinished(tmp_path))
    assert found == [False, True, False]


def test_a_manifest_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, "x", settings={"a": 1})
    before = (tmp_path / "run.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(tmp_path, "x", settings={"a": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"run.json": before}


def test_of_files_that_no_manifest_names_the_generated_ones_come_first(tmp_path: Path) -> None:
    for name in ("alpaca_data.json", "kept.jsonl", "regen.json"):
        (tmp_path / name).write_text("[]")
        assert data_file_of(tmp_path).name == name


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
