"""What counts as ours in an output folder, and how it is left when a run never gets under way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alpaca_ray.errors import OutputError, SettingsError
from alpaca_ray.train import claim, publish
from alpaca_ray.train.claim import claimed, settle


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def take(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    with claimed(folder, resume=resume, overwrite=overwrite, examine=lambda: None):
        settle(folder)


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A finished run's folder, with files beside it that are none of ours."""
    folder = tmp_path / "out"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoint-3" / "trainer_state.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"stage": "train"}))
    for name in ("adapter_config.json", "metrics.jsonl", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (folder / name).write_text('{"step": 3}\n')
    for name in ("train_settings.yaml", "heldout_ids.json", "train_identity.json"):
        (folder / name).write_text("[]")
    (folder / "checkpoint-keep-forever").mkdir()
    for name in ("tokenizer_notes.md", "vocab.bak", "model-mine.safetensors", "notes.txt"):
        (folder / name).write_text("mine")
    return folder


FOREIGN = ["checkpoint-keep-forever", "model-mine.safetensors", "notes.txt", "tokenizer_notes.md", "vocab.bak"]


def test_overwrite_deletes_ours_and_leaves_the_rest(old_run: Path) -> None:
    take(old_run, overwrite=True)
    assert sorted(path.name for path in old_run.iterdir()) == FOREIGN


@pytest.mark.parametrize("flags", [{"resume": True}, {"overwrite": True}])
def test_a_run_that_never_gets_under_way_leaves_the_folder_as_it_was(old_run: Path, flags: dict[str, bool]) -> None:
    before = tree(old_run)

    def fail() -> None:
        with claimed(old_run, **{"resume": False, "overwrite": False, **flags}, examine=lambda: None):
            assert not (old_run / "run.json").exists()
            (old_run / publish.RAY_FOLDER).mkdir()
            for name in ("train_settings.yaml", "heldout_ids.json", "train_identity.json"):
                (old_run / name).write_text("new")
            raise SettingsError("no such layer")

    with pytest.raises(SettingsError, match="no such layer"):
        fail()
    assert tree(old_run) == before


def test_a_folder_that_was_there_stays_and_one_that_was_not_goes(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with claimed(folder, resume=False, overwrite=False, examine=lambda: None):
            (folder / "train_settings.yaml").write_text("new")
            raise SettingsError("x")

    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    for name in ("empty", "theirs", "new/deep"):
        with pytest.raises(SettingsError):
            fail(tmp_path / name)
    assert tree(tmp_path) == before


def test_what_a_killed_run_set_aside_comes_back(old_run: Path, tmp_path: Path) -> None:
    before = tree(old_run)
    copy = tmp_path / "copy"
    with claimed(old_run, resume=False, overwrite=True, examine=lambda: None):
        (old_run / "train_settings.yaml").write_text("new")
        shutil.copytree(old_run, copy)  # what lies there if the process ends here
        settle(old_run)
    assert not (copy / "adapter_config.json").exists()
    with pytest.raises(OutputError, match="already holds"):
        take(copy)
    assert tree(copy) == before


def test_a_run_that_got_under_way_keeps_what_a_resume_needs(old_run: Path) -> None:
    def fail() -> None:
        with claimed(old_run, resume=False, overwrite=True, examine=lambda: None):
            (old_run / "train_settings.yaml").write_text("new")
            (old_run / publish.RAY_FOLDER).mkdir()
            settle(old_run)
            (old_run / "metrics.jsonl").write_text('{"step": 0}\n')
            raise SettingsError("later")

    with pytest.raises(SettingsError, match="later"):
        fail()
    assert sorted(path.name for path in old_run.iterdir()) == sorted([*FOREIGN, "metrics.jsonl", "train_settings.yaml"])


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_model_of_somebody_elses_is_never_taken(tmp_path: Path, flags: dict[str, bool]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"already holds config\.json, which no run of this program wrote"):
        take(tmp_path, **flags)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_another_stages_folder_is_never_taken(tmp_path: Path, flags: dict[str, bool]) -> None:
    (tmp_path / "run.json").write_text('{"stage": "generate"}')
    with pytest.raises(OutputError, match="another stage \\(generate\\)"):
        take(tmp_path, **flags)
    assert (tmp_path / "run.json").read_text() == '{"stage": "generate"}'


def test_a_used_folder_needs_a_flag(old_run: Path) -> None:
    with pytest.raises(OutputError, match="give --resume to go on, --overwrite to start anew"):
        take(old_run)


def test_a_resumed_folder_is_not_complete_until_the_run_ends(old_run: Path) -> None:
    take(old_run, resume=True)
    assert not (old_run / "run.json").exists()
    assert (old_run / "checkpoint-3").is_dir()


def test_a_second_run_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, resume=False, overwrite=False, examine=lambda: None),
        pytest.raises(OutputError, match="another run is at work"),
    ):
        take(tmp_path)
    take(tmp_path)


def test_what_examine_refuses_changes_nothing(old_run: Path) -> None:
    before = tree(old_run)

    def refuse() -> None:
        raise OutputError("another run")

    with (
        pytest.raises(OutputError, match="another run"),
        claimed(old_run, resume=True, overwrite=False, examine=refuse),
    ):
        pass
    assert tree(old_run) == before
    assert claim.ours(old_run.parent / "nowhere") == []
