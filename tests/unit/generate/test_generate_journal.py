from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.generate import journal as journal_module
from alpaca_ray.generate.journal import Header, Journal, Outcome, read_journal, repair

HEADER = Header({"model_name": "m"}, initial=3)


def outcome(number: int, text: str = "some text\u2028with\x85every\n\nbreak \ud800") -> Outcome:
    return Outcome(
        number,
        ["a", "b"],
        "0123",
        "m",
        text,
        "stop",
        usage={"prompt_tokens": 5},
        lost={"prompt_tokens": 7, "completion_tokens": 9},
        seconds=0.25,
        failures={"timeout": 1},
    )


def write(path: Path, outcomes: list[Outcome]) -> None:
    journal = Journal(path)
    journal.write_header(HEADER)
    journal.append(outcomes)
    journal.close()


def holds_nothing(path: Path) -> bool:
    found = read_journal(path)
    return found.header is None and list(found.outcomes) == list(found.outcomes.in_order()) == []


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    outcomes = [outcome(1), outcome(0), Outcome(2, [], "x", "m", error="timeout", message="no answer in time")]
    write(path, outcomes)
    found = read_journal(path)
    assert found.header == HEADER
    assert list(found.outcomes) == outcomes
    assert list(found.outcomes.in_order()) == [outcomes[1], outcomes[0], outcomes[2]]
    assert found.outcomes.ids == {0, 1, 2}
    assert (found.outcomes[0], found.outcomes[-1], found.outcomes[1:]) == (outcomes[0], outcomes[2], outcomes[1:])
    with pytest.raises(IndexError):
        found.outcomes[3]


def test_one_append_after_the_other_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write_header(HEADER)
    for number in range(3):
        journal.append([outcome(number)])
    journal.close()
    journal = Journal(path)
    journal.append([outcome(3)])
    journal.append([outcome(4)])
    journal.close()
    assert list(read_journal(path).outcomes) == [outcome(number) for number in range(5)]


def test_the_name_of_a_new_journal_is_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(journal_module, "sync_folder", synced.append)
    for _ in range(2):
        Journal(tmp_path / "journal.jsonl").close()
    assert synced == [tmp_path]


@pytest.mark.parametrize("size", [65_000, 65_536, 70_000, 200_000])
def test_a_long_torn_line_takes_no_other_with_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0), outcome(1, "x" * 200_000)])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * size)
    assert repair(path) == size
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_left_out_and_repaired(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0), outcome(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [found.request_id for found in read_journal(path).outcomes] == [0]
    journal = Journal(path)
    journal.append([outcome(1)])
    journal.close()
    assert path.read_bytes() == whole


def test_repair_leaves_a_sound_file_and_empties_one_without_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0, "x" * 200_000)])
    size = path.stat().st_size
    assert repair(path) == 0
    assert path.stat().st_size == size
    path.write_bytes(b'{"journal": 1, "sett')
    assert holds_nothing(path)
    assert repair(path) == 20
    assert path.stat().st_size == 0


def test_a_repeated_outcome_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "j", [outcome(0, "first"), outcome(1), outcome(0, "second")])
    assert [found.text for found in read_journal(tmp_path / "j").outcomes] == ["first", outcome(1).text]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json}", "line 3: not valid JSON"),
        ("[1]", "line 3: must hold"),
        ('{"a": 1}', "line 3: not the outcome"),
        ('{"request_id": -1, "seed_ids": [], "prompt_sha": "", "model": "m"}', "line 3: not the outcome"),
        ('{"request_id": "1", "seed_ids": [], "prompt_sha": "", "model": "m"}', "line 3: not the outcome"),
    ],
)
def test_damage_in_the_middle_names_the_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0)])
    with path.open("a") as file:
        file.write(f"{line}\n")
    journal = Journal(path)
    journal.append([outcome(1)])
    journal.close()
    with pytest.raises(DataError, match=words):
        read_journal(path)


def test_a_journal_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"journal": 99, "settings": {}}\n')
    with pytest.raises(DataError, match="line 1: not the header"):
        read_journal(tmp_path / "j")
    assert holds_nothing(tmp_path / "absent")


def test_settings_of_a_replay_take_the_headers_place(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0)])
    for value in (0.5, 0.6):
        journal = Journal(path)
        journal.write_settings({"similarity_threshold": value})
        journal.append([outcome(int(10 * value))])
        journal.close()
    found = read_journal(path)
    assert found.header == Header({"similarity_threshold": 0.6}, initial=3), "the records from before are the same"
    assert [one.request_id for one in found.outcomes] == [0, 5, 6]
    path.write_bytes(path.read_bytes().replace(b"0.6}}", b"0.6"))
    with pytest.raises(DataError, match="line 5: not valid JSON"):
        read_journal(path)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0)])
    before = path.read_bytes()
    journal = Journal(path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"journal\.jsonl: cannot be written: No space left on device.*--resume"):
        journal.append([outcome(1)])
    monkeypatch.undo()
    assert path.read_bytes() == before


# Python leaves SIGXFSZ ignored: a write beyond the limit takes a part, and then fails, as on a full disk.
FULL_DISK = """
import resource, sys
from pathlib import Path
from alpaca_ray.errors import OutputError
from alpaca_ray.generate.journal import Journal, Outcome

path, size = Path(sys.argv[1]), int(sys.argv[2])
journal = Journal(path)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + size // 2, hard))
for number in (1, 2):
    try:
        journal.append([Outcome(number, [], "", "m", "x" * size)])
    except OutputError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
if sys.argv[3] == "again":
    journal.append([Outcome(3, [], "", "m", "y" * size)])
journal.close()
"""


@pytest.mark.parametrize("size", [300, 3000, 300_000])
@pytest.mark.parametrize("then", ["close", "again"])
def test_a_disk_that_really_is_full_leaves_nothing_behind(tmp_path: Path, size: int, then: str) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0)])
    command = [sys.executable, "-c", FULL_DISK, str(path), str(size), then]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be written: File too large") == 2
    journal = Journal(path)
    journal.append([outcome(4)])
    journal.close()
    assert [found.request_id for found in read_journal(path).outcomes] == ([0, 3, 4] if then == "again" else [0, 4])


def test_what_could_not_be_cut_off_goes_before_the_next_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [outcome(0)])
    journal = Journal(path)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        journal.append([outcome(1)])
    monkeypatch.undo()
    journal.append([outcome(2)])
    journal.close()
    assert [found.request_id for found in read_journal(path).outcomes] == [0, 2]


def test_an_append_is_synchronised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = os.fsync
    journal = Journal(tmp_path / "j")

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append([outcome(number) for number in range(50)])
    assert len(calls) == 1
