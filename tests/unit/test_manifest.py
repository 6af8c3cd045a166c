"""run.json: what it records, and how the next stage finds it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.manifest import data_file_of, read_manifest, write_manifest


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


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
