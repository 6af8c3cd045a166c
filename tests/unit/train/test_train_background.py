"""Checkpoints written beside the work: whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from alpaca_ray.errors import OutputError, TrainingError
from alpaca_ray.train import background, publish
from alpaca_ray.train.whole import LIST_FILE


def write(folder: Path, step: int) -> None:
    with background.staged(folder, f"checkpoint-{step}") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "weights").write_text(str(step))
        os.chmod(staging / "sub" / "weights", 0o600)
        (staging / publish.STATE_FILE).write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_gets_its_name_when_it_is_whole_and_can_be_read(tmp_path: Path) -> None:
    with background.staged(tmp_path, "checkpoint-1") as staging:
        (staging / publish.STATE_FILE).write_text("{}")
        assert publish.newest_checkpoint(tmp_path) is None
    assert publish.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    write(tmp_path, 2)
    mode = stat.S_IMODE((tmp_path / "checkpoint-2" / "sub" / "weights").stat().st_mode)
    assert mode == 0o666 & ~publish.umask()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_what_fails_in_the_middle_leaves_the_one_before(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def half() -> None:
        with background.staged(tmp_path, "checkpoint-2") as staging:
            (staging / publish.STATE_FILE).write_text("{}")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        half()
    assert names(tmp_path) == ["checkpoint-1"]


def test_an_older_folder_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "half").touch()
    write(tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-3"]
    assert names(tmp_path / "checkpoint-3") == [LIST_FILE, "sub", publish.STATE_FILE]


def test_a_run_that_lost_the_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="another run has taken this folder over"),
        background.staged(tmp_path, "checkpoint-1", still_ours=lambda: False) as staging,
    ):
        (staging / "weights").touch()
    assert names(tmp_path) == []


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        write(tmp_path, step)
    background.rotate(tmp_path, None)
    assert len(names(tmp_path)) == 4
    background.rotate(tmp_path, 2, best=str(tmp_path / "checkpoint-10"))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    background.rotate(tmp_path, 1, best=str(tmp_path / "checkpoint-10"))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    background.rotate(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-100"]


def test_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / f"{background.STAGING}checkpoint-2.abc").mkdir()
    (tmp_path / ".mine").touch()
    background.sweep(tmp_path)
    assert names(tmp_path) == [".mine", "checkpoint-1"]


def test_an_error_beside_the_work_comes_out_as_one_line(tmp_path: Path) -> None:
    beside = background.Background()
    release = threading.Event()

    def full() -> None:
        release.wait(10)
        raise RuntimeError("[enforce fail] no space left on device\nmany\nlines")

    beside.start(full, "out/checkpoint-4")
    assert beside.busy
    release.set()
    beside.wait()
    assert not beside.busy
    assert isinstance(beside.error, OutputError)
    assert str(beside.error) == "out/checkpoint-4: cannot be written: [enforce fail] no space left on device"

    def bad() -> None:
        raise TrainingError("not a number")

    beside.start(bad, "x")
    beside.wait()
    assert isinstance(beside.error, TrainingError)
    beside.start(lambda: None, "x")
    beside.wait()
    assert beside.error is None
