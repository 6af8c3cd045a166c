"""Output folders and files: claimed before work, replaced in one step, never half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_ray import storage
from alpaca_ray.errors import OutputError

OURS = ("regen.json", "checkpoint-*")


def test_an_unused_folder_is_created(tmp_path: Path) -> None:
    storage.claim_output(tmp_path / "a" / "b", OURS, resume=False, overwrite=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_used_folder_needs_a_decision(tmp_path: Path) -> None:
    (tmp_path / "regen.json").write_text("[]")
    with pytest.raises(OutputError, match=r"already holds regen\.json: give --resume"):
        storage.claim_output(tmp_path, OURS, resume=False, overwrite=False)
    storage.claim_output(tmp_path, OURS, resume=True, overwrite=False)
    assert (tmp_path / "regen.json").exists()


def test_overwrite_deletes_only_what_is_ours(tmp_path: Path) -> None:
    (tmp_path / "regen.json").write_text("[]")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "weights").write_text("w")
    (tmp_path / "thesis.tex").write_text("mine")
    storage.claim_output(tmp_path, OURS, resume=False, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_of_other_files_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    storage.claim_output(tmp_path, OURS, resume=False, overwrite=False)


def test_contradiction_and_a_file_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="contradict"):
        storage.claim_output(tmp_path, OURS, resume=True, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        storage.resolve_output(str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        storage.claim_output(tmp_path / "file" / "below", OURS, resume=False, overwrite=False)


def test_resolve_output_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.resolve_output("./out/../x") == tmp_path / "x"
    assert storage.resolve_output("/abs") == Path("/abs")
    with pytest.raises(OutputError, match="must be a folder"):
        storage.resolve_output("s3://bucket/x")


def test_resolve_output_where_a_relative_path_does_not_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv(storage.STORAGE_ENV, raising=False)
    with pytest.raises(OutputError, match=storage.STORAGE_ENV):
        storage.resolve_output("./out")
    monkeypatch.setenv(storage.STORAGE_ENV, str(tmp_path / "kept"))
    assert storage.resolve_output("./out") == tmp_path / "kept" / "out"
    assert storage.resolve_output("/abs") == Path("/abs")


def test_several_nodes_need_a_shared_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(storage.STORAGE_ENV, raising=False)
    with pytest.raises(OutputError, match="several nodes"):
        storage.resolve_output("out", several_nodes=True)


def test_write_atomic_leaves_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    storage.write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(storage.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        storage.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_publish_folder_replaces_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with storage.publish_folder(target) as folder:
        (folder / "a").write_text("1")
    with storage.publish_folder(target) as folder:
        (folder / "b").write_text("2")
        assert (target / "a").exists()
    assert [entry.name for entry in target.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_publish_folder_that_fails_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with storage.publish_folder(target) as folder:
        (folder / "a").write_text("1")

    def stop_halfway() -> None:
        with storage.publish_folder(target) as folder:
            (folder / "b").write_text("2")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        stop_halfway()
    assert [entry.name for entry in target.iterdir()] == ["a"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_second_run_on_one_folder_is_refused(tmp_path: Path) -> None:
    first, second = storage.hold_output(tmp_path), storage.hold_output(tmp_path)
    with first, pytest.raises(OutputError, match="another run is at work"):
        second.__enter__()
    with storage.hold_output(tmp_path):  # free again, and nothing is left behind
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_empty_output_folder_is_refused() -> None:
    with pytest.raises(OutputError, match="is empty"):
        storage.resolve_output(" ")


def test_a_file_uri_is_a_folder(tmp_path: Path) -> None:
    assert storage.resolve_output(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
