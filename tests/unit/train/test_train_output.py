"""Progress, publishing, and what counts as a used output folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from alpaca_ray.report.plots import save_loss_curve
from alpaca_ray.train import progress, publish
from alpaca_ray.train.whole import write_list


def test_files_appear_together_and_the_marking_one_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    moved: list[str] = []
    replace = os.replace

    def spy(source: str | Path, target: str | Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(publish.os, "replace", spy)
    with publish.publish_files(tmp_path, "adapter_config.json") as staging:
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
            (staging / name).write_text(name)
        assert not (tmp_path / "tokenizer.json").exists()
    assert moved[-1] == "adapter_config.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(moved)


def test_a_failed_save_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("old")

    def save() -> None:
        with publish.publish_files(tmp_path, "adapter_config.json") as staging:
            (staging / "adapter_config.json").write_text("new")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        save()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
    assert (tmp_path / "adapter_config.json").read_text() == "old"


def test_shards_of_a_larger_model_are_removed(tmp_path: Path) -> None:
    (tmp_path / "model-00002-of-00002.safetensors").write_text("old")
    with publish.publish_files(tmp_path, "config.json") as staging:
        (staging / "model.safetensors").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_newest_checkpoint_is_the_highest_that_was_written_whole(tmp_path: Path) -> None:
    for number, whole in ((9, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
            write_list(tmp_path / f"checkpoint-{number}")
    assert publish.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert publish.newest_checkpoint(tmp_path / "nowhere") is None


def test_rows_after_the_resumed_step_are_dropped_and_a_torn_line_ignored(tmp_path: Path) -> None:
    for step in (0, 5, 10):
        progress.append(tmp_path, {"step": step})
    with (tmp_path / progress.METRICS_FILE).open("a") as handle:
        handle.write('{"step": 1')
    assert [row["step"] for row in progress.read_metrics(tmp_path)] == [0, 5, 10]
    assert [row["step"] for row in progress.rewind(tmp_path, 5)] == [0, 5]
    assert [row["step"] for row in progress.read_metrics(tmp_path)] == [0, 5]


def test_a_run_from_the_beginning_writes_behind_nothing(tmp_path: Path) -> None:
    progress.append(tmp_path, {"step": 0})
    with (tmp_path / progress.METRICS_FILE).open("a") as handle:
        handle.write('{"step": 1')
    assert progress.rewind(tmp_path, -1) == []
    progress.append(tmp_path, {"step": 0})
    assert (tmp_path / progress.METRICS_FILE).read_text() == '{"step": 0}\n'
    assert progress.rewind(tmp_path / "nowhere", -1) == []


def test_the_driver_shows_each_row_once_and_in_order(tmp_path: Path) -> None:
    progress.append(tmp_path, {"step": 1, "loss": 9.0})
    shown: list[str] = []
    with progress.follow(tmp_path, shown.append):
        progress.append(tmp_path, {"step": 2, "total_steps": 3, "loss": 1.5, "learning_rate": 1e-4})
        deadline = time.monotonic() + 20
        while not shown and time.monotonic() < deadline:
            time.sleep(0.05)
        progress.append(tmp_path, {"step": 3, "total_steps": 3, "eval_loss": 1.25})
    assert shown == ["step 2/3 | loss 1.5000 | learning rate 1.00e-04", "step 3/3 | validation loss 1.2500"]


def test_a_rewound_file_is_followed_from_its_new_end(tmp_path: Path) -> None:
    for step in range(5):
        progress.append(tmp_path, {"step": step})
    shown: list[str] = []
    with progress.follow(tmp_path, shown.append):
        progress.rewind(tmp_path, 1)
        time.sleep(3 * progress._POLL_SECONDS)
        progress.append(tmp_path, {"step": 2})
    assert shown == ["step 2"]


def test_a_file_that_grew_past_its_old_end_at_once_is_followed_from_the_rewound_row(tmp_path: Path) -> None:
    for step in range(3):
        progress.append(tmp_path, {"step": step})
    shown: list[str] = []
    with progress.follow(tmp_path, shown.append):
        progress.rewind(tmp_path, 0)
        for step in range(1, 9):
            progress.append(tmp_path, {"step": step, "loss": 1.0})
    assert shown == [f"step {step} | loss 1.0000" for step in range(1, 9)]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    rows = [{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.0, "eval_loss": 1.2}]
    save_loss_curve(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
