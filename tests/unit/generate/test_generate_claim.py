from __future__ import annotations

import os
from pathlib import Path

import pytest

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.claim import REPLACED, Claim
from alpaca_ray.generate.folder import inspect
from alpaca_ray.storage import hold_output


def claim(folder: Path, *, resume: bool = False, overwrite: bool = False) -> Claim:
    return Claim(folder, inspect(folder, resume=resume, overwrite=overwrite), overwrite=overwrite)


def test_a_folder_that_is_not_there_is_made_when_it_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    with claim(folder) as held:
        assert not folder.exists()
        held.open()
        with pytest.raises(OutputError, match="another run is at work in it"), hold_output(folder):
            pass
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_there_is_held_at_once(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(OutputError, match="another run is at work in it"), claim(tmp_path):
        pass
    with claim(tmp_path) as held:
        held.open()


def test_of_two_runs_that_both_found_no_folder_the_second_asks_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    late = claim(folder)
    with claim(folder) as first:
        with pytest.raises(OutputError, match="another run is at work in it"), late:
            pass
        first.open()
        with pytest.raises(OutputError, match="another run is at work in it"), claim(folder):
            pass
        (folder / "journal.jsonl").write_text("{}\n")
    with pytest.raises(OutputError, match="another run has written in it meanwhile: give --resume"), late:
        pass
    assert (folder / "journal.jsonl").read_text() == "{}\n"


def test_a_folder_that_another_made_meanwhile_is_held_when_it_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with claim(folder) as first:
        folder.mkdir()
        with claim(folder), pytest.raises(OutputError, match="another run is at work in it"):
            first.open()
        first.open()
        with pytest.raises(OutputError, match="another run is at work in it"), claim(folder):
            pass


def test_what_a_run_without_an_answer_has_put_there_goes(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    with claim(folder) as held:
        held.open()
        (folder / "journal.jsonl").write_text("{}\n")
        held.undo()
    assert list(tmp_path.iterdir()) == []
    with claim(folder) as held:
        held.open()
        (folder.parent / "theirs.txt").write_text("x")
        held.undo()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["theirs.txt"]
    folder.mkdir(parents=True)
    (folder / "regen.json").write_text("[]")
    (folder / "theirs.txt").write_text("x")
    with claim(folder) as held:
        held.open()
        (folder / "journal.jsonl").write_text("{}\n")
        held.undo()
    assert sorted(path.name for path in folder.iterdir()) == ["regen.json", "theirs.txt"]


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_that_changed_since_the_look_is_refused(tmp_path: Path, flag: str) -> None:
    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"journal": 1, "settings": {}}\n')
    looked = claim(tmp_path, **{flag: True})
    with journal.open("a") as file:
        file.write("{}\n")
    with pytest.raises(OutputError, match="another run has written in it meanwhile"), looked:
        pass
    with claim(tmp_path, overwrite=True) as held:
        os.utime(journal)  # once it is held, what changes is our own doing
        held.open()
        assert not journal.exists()
        held.settle()
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_does_not_inherit_what_an_earlier_one_sent(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "settings": {}}\n')
    (tmp_path / "sent.jsonl").write_text('{"sent":[[0,1,1]]}\n')
    with claim(tmp_path, resume=True) as held:
        held.open()
        assert (tmp_path / "sent.jsonl").exists()
    with claim(tmp_path, overwrite=True) as held:
        held.open()
        assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", REPLACED]
        held.settle()
    assert list(tmp_path.iterdir()) == []


def test_what_is_overwritten_comes_back_where_there_was_no_answer(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "settings": {}}\n')
    (tmp_path / "run.json").write_text('{"stage": "generate"}')
    before = contents(tmp_path)
    for _ in range(2):  # the second after one that was killed before it could put anything back
        with claim(tmp_path, overwrite=True) as held:
            held.open()
            (tmp_path / "journal.jsonl").write_text("new")
    with claim(tmp_path, overwrite=True) as held:
        held.open()
        (tmp_path / "journal.jsonl").write_text("newer")
        held.undo()
    assert contents(tmp_path) == before


def test_a_run_that_was_killed_while_it_put_things_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "settings": {}}\n')
    (tmp_path / "regen.json").write_text("[]")
    before = contents(tmp_path)
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == "regen.json":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched, claim(tmp_path, overwrite=True) as held:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            held.open()
    assert not (tmp_path / "journal.jsonl").exists()
    with claim(tmp_path, overwrite=True) as held:
        held.open()
        held.undo()
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_opening_takes_the_mark_of_a_complete_folder_away(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"journal": 1, "settings": {}}\n')
    (tmp_path / "run.json").write_text('{"stage": "generate"}')
    with claim(tmp_path, resume=True) as held:
        assert (tmp_path / "run.json").exists()
        held.open()
        assert [path.name for path in sorted(tmp_path.iterdir())] == [".lock", "journal.jsonl"]
