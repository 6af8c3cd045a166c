"""An output folder in a bucket: its segments, its mark, and the copy that a run works on."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock, Timeout

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.generate import lease, segments
from alpaca_ray.generate.bucket import Bucket, copy_of
from alpaca_ray.generate.claim import Claim
from alpaca_ray.generate.folder import OURS, WHOLE, inspect
from alpaca_ray.generate.journal import Header, Journal, Outcome, read_journal
from alpaca_ray.generate.lease import Lease
from alpaca_ray.generate.segments import Segments, reaching


@pytest.fixture
def store() -> Iterator[tuple[Any, str]]:
    """A store that this process alone sees, and a folder in it."""
    filesystem = fsspec.filesystem("memory")
    folder = f"/{uuid.uuid4().hex}"
    yield filesystem, folder
    if filesystem.exists(folder):
        filesystem.rm(folder, recursive=True)


def opened(store: tuple[Any, str]) -> Segments:
    return Segments(store[0], f"{store[1]}/j", "memory://j")


def names(store: tuple[Any, str]) -> list[str]:
    return sorted(path.rsplit("/", 1)[-1] for path in store[0].find(f"{store[1]}/j"))


def lines(numbers: range) -> list[bytes]:
    return [f'{{"n": {number}}}\n'.encode() for number in numbers]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 23])
def test_what_was_appended_is_read_in_order_and_goes_on(
    store: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(segments, "_MERGE", 4)
    writer = opened(store)
    assert not writer
    for line in lines(range(count)):
        writer.append(line)
    again = opened(store)
    assert bool(again) is (count > 0)
    assert b"".join(again.read()) == b"".join(lines(range(count)))
    again.append(b"last\n")
    assert b"".join(opened(store).read()) == b"".join([*lines(range(count)), b"last\n"])


def test_many_objects_become_few(store: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MERGE", 4)
    writer = opened(store)
    for line in lines(range(10)):
        writer.append(line)
    assert names(store) == ["0000000000-0000000003", "0000000004-0000000007", "0000000008", "0000000009"]


def test_objects_that_a_larger_one_replaces_do_not_count_twice(store: tuple[Any, str]) -> None:
    filesystem, folder = store
    for name, data in (("0000000000", b"a\n"), ("0000000001", b"b\n"), ("0000000000-0000000001", b"a\nb\n")):
        filesystem.pipe_file(f"{folder}/j/{name}", data)
    assert b"".join(opened(store).read()) == b"a\nb\n"
    opened(store).append(b"c\n")
    assert b"".join(opened(store).read()) == b"a\nb\nc\n"


@pytest.mark.parametrize("left", [0, 1])
def test_a_merge_that_was_cut_off_while_it_removed_the_pieces_is_whole(store: tuple[Any, str], left: int) -> None:
    for name, data in ((f"{left:010d}", b"ab"[left : left + 1] + b"\n"), ("0000000000-0000000001", b"a\nb\n")):
        store[0].pipe_file(f"{store[1]}/j/{name}", data)
    assert b"".join(opened(store).read()) == b"a\nb\n"
    opened(store).append(b"c\n")
    assert b"".join(opened(store).read()) == b"a\nb\nc\n"


def test_pieces_stay_until_what_is_made_of_them_is_whole(
    store: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_MERGE", 4)
    writer = opened(store)
    for line in lines(range(4)):
        writer.append(line)
    write = store[0].pipe_file
    with monkeypatch.context() as patched:
        patched.setattr(store[0], "pipe_file", lambda path, data, **more: write(path, data[:-3], **more))
        with pytest.raises(OutputError, match="0000000000-0000000003 was not written whole"):
            writer.append(b"late\n")
    assert b"".join(opened(store).read()) == b"".join(lines(range(4)))
    opened(store).append(b"late\n")
    assert b"".join(opened(store).read()) == b"".join([*lines(range(4)), b"late\n"])


def test_a_part_that_is_missing_is_said(store: tuple[Any, str]) -> None:
    for number in (0, 2):
        store[0].pipe_file(f"{store[1]}/j/{number:010d}", b"a\n")
    with pytest.raises(DataError, match="part 1 is missing"):
        opened(store)


def test_of_two_writers_one_fails(store: tuple[Any, str]) -> None:
    first, second = opened(store), opened(store)
    first.append(b"a\n")
    with pytest.raises(OutputError, match="another run has written in it"):
        second.append(b"b\n")
    first.append(b"c\n")
    assert b"".join(opened(store).read()) == b"a\nc\n"


def test_an_object_whose_receipt_was_lost_is_not_an_error(store: tuple[Any, str]) -> None:
    writer = opened(store)
    store[0].pipe_file(f"{store[1]}/j/0000000000", b"a\n")
    writer.append(b"a\n")
    writer.append(b"b\n")
    assert b"".join(opened(store).read()) == b"a\nb\n"


def test_a_torn_object_loses_its_last_line_alone(store: tuple[Any, str]) -> None:
    store[0].pipe_file(f"{store[1]}/j/0000000000", b'a\n{"tor')
    opened(store).append(b"b\n")
    assert b"".join(opened(store).read()) == b"a\nb\n"


def test_pieces_that_are_all_there_win_over_what_was_made_of_them(store: tuple[Any, str]) -> None:
    for name, data in (("0000000000", b"a\n"), ("0000000001", b"b\n"), ("0000000000-0000000001", b'a\n{"to')):
        store[0].pipe_file(f"{store[1]}/j/{name}", data)
    assert b"".join(opened(store).read()) == b"a\nb\n"


def test_large_objects_are_read_one_at_a_time(store: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MERGE", 4)
    writer = opened(store)
    for line in lines(range(14)):
        writer.append(line)
    asked: list[int] = []
    fetch = Segments._fetch

    def counted(self: Segments, parts: Any) -> list[bytes]:
        asked.append(len(parts))
        return fetch(self, parts)

    monkeypatch.setattr(Segments, "_fetch", counted)
    assert b"".join(opened(store).read()) == b"".join(lines(range(14)))
    assert [count for count in asked if count] == [1, 1, 1, 2]


def test_a_journal_that_is_one_object_is_named(store: tuple[Any, str]) -> None:
    store[0].pipe_file(f"{store[1]}/j", b"a\n")
    with pytest.raises(DataError, match=r"is one object, as a run in a folder has it: move it to .*/0000000000"):
        opened(store)


@pytest.mark.parametrize(
    "error", [OSError("PreconditionFailed: 412"), OSError(errno.EINVAL, "Invalid argument")], ids=["words", "number"]
)
def test_a_store_that_answers_a_taken_name_in_other_words(
    store: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    writer = opened(store)
    writer.append(b"a\n")
    late = opened(store)
    writer.append(b"b\n")

    def refused(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(store[0], "pipe_file", refused)
    with pytest.raises(OutputError, match="another run has written in it"):
        late.append(b"c\n")


def test_an_answer_that_did_not_reach_the_bucket_does_not_count(tmp_path: Path) -> None:
    class Broken:
        def append(self, data: bytes) -> None:
            raise OutputError("s3://b/journal.jsonl: cannot be written: gone")

    journal = Journal(tmp_path / "journal.jsonl")
    journal.write_header(Header({}))
    journal.close()
    journal = Journal(tmp_path / "journal.jsonl", Broken())
    with pytest.raises(OutputError, match="gone"):
        journal.append([Outcome(0, [], "p", "m", text="t")])
    journal.close()
    assert not len(read_journal(tmp_path / "journal.jsonl").outcomes)


def test_an_error_of_a_client_is_one_line_of_ours() -> None:
    class OddError(Exception):
        pass

    with (
        pytest.raises(OutputError, match=r"^s3://b: cannot be written: no key; go on with --resume$"),
        reaching("s3://b"),
    ):
        raise OddError("no key\nand more")
    with pytest.raises(OutputError, match=r"^mine$"), reaching("s3://b"):
        raise OutputError("mine")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 2.0)


def test_a_run_at_work_keeps_others_out_and_lets_them_in_when_it_ends(store: tuple[Any, str], quick: None) -> None:
    path = f"{store[1]}/mark"
    first, second = (Lease(store[0], path, "s3://b/run") for _ in range(2))
    first.take()
    try:
        # The mark says that it is of this very process, which lives: it is watched, and seen to be renewed.
        with pytest.raises(OutputError, match="another run is at work in it"):
            second.take()
        found = {store[0].cat_file(path)}
        end = time.monotonic() + 20
        while len(found) < 4 and time.monotonic() < end:
            time.sleep(0.01)
            found.add(store[0].cat_file(path))
        assert len(found) == 4, "each renewal is another mark: whoever looks twice sees that"
    finally:
        first.give_back()
    assert not store[0].exists(path)
    second.take()
    second.give_back()
    assert not store[0].exists(path)


@pytest.mark.parametrize("here", [False, True])
def test_the_mark_of_a_dead_run_is_taken_over(
    store: tuple[Any, str], quick: None, monkeypatch: pytest.MonkeyPatch, here: bool
) -> None:
    # A process of this machine is known to be gone at once; of one elsewhere, with the same number, that is not known.
    monkeypatch.setattr(lease, "_WATCH_SECONDS", 20.0 if here else 0.1)
    path = f"{store[1]}/mark"
    left = {"host": "h", "machine": lease._machine() if here else "another", "pid": 4194305, "run": "x", "beat": 7}
    store[0].pipe_file(path, json.dumps(left).encode())
    new = Lease(store[0], path, "s3://b/run")
    looked: list[Any] = []
    monkeypatch.setattr(Lease, "_changes", lambda self, before: looked.append(before))
    new.take()
    assert json.loads(store[0].cat_file(path))["run"] != "x"
    new.give_back()
    assert looked == ([] if here else [left])


def test_of_two_that_take_a_dead_runs_place_at_once_the_first_stands_back(
    store: tuple[Any, str], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{store[1]}/mark"
    dead = {"machine": lease._machine(), "pid": 4194305, "run": "x"}
    store[0].pipe_file(path, json.dumps(dead).encode())
    write = Lease._write

    def overtaken(self: Lease, beat: int) -> None:
        write(self, beat)
        store[0].pipe_file(path, b'{"run": "other"}')

    monkeypatch.setattr(Lease, "_write", overtaken)
    with pytest.raises(OutputError, match="another run is at work in it"):
        Lease(store[0], path, "s3://b/run").take()
    assert store[0].cat_file(path) == b'{"run": "other"}'


def test_where_machines_cannot_be_told_apart_no_mark_is_of_a_dead_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease._is_gone({"machine": lease._machine(), "pid": 4194305})
    monkeypatch.setattr(lease, "_machine", lambda: "")
    assert not lease._is_gone({"machine": "", "pid": 4194305})


def test_a_half_written_mark_is_watched_as_any_other(store: tuple[Any, str], quick: None) -> None:
    path = f"{store[1]}/mark"
    store[0].pipe_file(path, b'{"run": "x", "be')
    timer = threading.Timer(0.1, lambda: store[0].pipe_file(path, b'{"run": "x", "beat": 2}'))
    timer.start()
    with pytest.raises(OutputError, match="another run is at work in it"):
        Lease(store[0], path, "s3://b/run").take()
    timer.join()
    assert store[0].cat_file(path) == b'{"run": "x", "beat": 2}'


def test_a_renewal_that_fails_is_told_and_tried_again(
    store: tuple[Any, str], quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{store[1]}/mark"
    held = Lease(store[0], path, "s3://b/run")
    write, failed, again = Lease._write, threading.Event(), threading.Event()

    def failing_once(self: Lease, beat: int) -> None:
        if not failed.is_set():
            failed.set()
            raise TimeoutError("no answer")
        write(self, beat)
        again.set()

    monkeypatch.setattr(Lease, "_write", failing_once)
    held.take()
    assert again.wait(20)
    held.give_back()
    assert "in_use.json could not be renewed (no answer)" in capsys.readouterr().out


def test_a_renewal_under_way_does_not_bring_the_mark_back(
    store: tuple[Any, str], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{store[1]}/mark"
    held = Lease(store[0], path, "s3://b/run")
    write, begun, gate = Lease._write, threading.Event(), threading.Event()

    def slow(self: Lease, beat: int) -> None:
        begun.set()
        assert gate.wait(20)
        write(self, beat)

    monkeypatch.setattr(Lease, "_write", slow)
    held.take()
    renewing = held._thread
    assert renewing is not None
    assert begun.wait(20)
    threading.Timer(0.2, gate.set).start()
    held.give_back()
    renewing.join(20)
    assert not store[0].exists(path)


def test_a_mark_that_cannot_be_removed_is_a_warning(
    store: tuple[Any, str], quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Lease(store[0], f"{store[1]}/mark", "s3://b/run")
    held.take()

    def refused(_: str) -> None:
        raise PermissionError("no permission to delete")

    monkeypatch.setattr(store[0], "rm_file", refused)
    held.give_back()
    assert "in_use.json could not be removed (no permission to delete)" in capsys.readouterr().out


def test_a_mark_that_is_not_renewed_is_a_dead_runs(store: tuple[Any, str], quick: None) -> None:
    path = f"{store[1]}/mark"
    store[0].pipe_file(path, b'{"run": "x"}')
    assert not Lease(store[0], path, "s3://b/run")._changes({"run": "x"})


def test_a_run_that_was_taken_for_dead_leaves_its_successors_mark_alone(
    store: tuple[Any, str], quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{store[1]}/mark"
    held = Lease(store[0], path, "s3://b/run")
    held.take()
    store[0].pipe_file(path, b'{"run": "successor"}')
    assert held._thread is not None
    held._thread.join(10)
    held.give_back()
    assert store[0].cat_file(path) == b'{"run": "successor"}'
    assert "another run has taken this one for dead" in capsys.readouterr().out


def test_a_store_that_cannot_part_two_runs_is_said_to_be_one(
    store: tuple[Any, str], quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Lease(store[0], f"{store[1]}/mark", "s3://b/run")
    new.take()
    new.give_back()
    assert capsys.readouterr().out == ""
    write = store[0].pipe_file
    monkeypatch.setattr(store[0], "pipe_file", lambda path, data, mode="overwrite": write(path, data))
    new = Lease(store[0], f"{store[1]}/mark", "s3://b/run")
    new.take()
    new.give_back()
    assert "nothing would part two runs" in capsys.readouterr().out


def test_a_mark_that_is_removed_while_it_is_watched_is_free(store: tuple[Any, str], quick: None) -> None:
    path = f"{store[1]}/mark"
    store[0].pipe_file(path, json.dumps({"host": "elsewhere", "pid": 1}).encode())
    timer = threading.Timer(0.1, lambda: store[0].rm_file(path))
    timer.start()
    new = Lease(store[0], path, "s3://b/run")
    new.take()
    new.give_back()
    timer.join()


@pytest.fixture
def address(store: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ALPACA_RAY_CACHE", str(tmp_path / "cache"))
    return f"memory:/{store[1]}"


def test_the_copy_holds_what_the_bucket_holds_and_goes_at_the_end(
    store: tuple[Any, str], address: str, tmp_path: Path
) -> None:
    filesystem, folder = store
    whole = {name: name.encode() for name in WHOLE}
    for name, data in {**whole, "theirs.txt": b"x"}.items():
        filesystem.pipe_file(f"{folder}/{name}", data)
    with copy_of(address, WHOLE) as bucket:
        bucket.segments("journal.jsonl").append(b"a\n")
    with copy_of(address + "/", WHOLE) as bucket:
        copied = {path.name: path.read_bytes() for path in bucket.folder.iterdir()}
        assert copied == {**whole, "journal.jsonl": b"a\n"}
        with pytest.raises(Timeout), FileLock(f"{bucket.folder}.lock", timeout=0):
            pass  # which is how the next run knows that it is somebody's
        (bucket.folder / "run.json").write_bytes(b"{}")
        bucket.publish("run.json")
        assert filesystem.cat_file(f"{folder}/run.json") == b"{}"
        for name in ("journal.jsonl", "run.json"):
            bucket.move(name, f".replaced/{name}")
        assert (bucket.holds("journal.jsonl"), bucket.holds(".replaced")) == (False, True)
        bucket.move(".replaced/journal.jsonl", "journal.jsonl")
        assert b"".join(bucket.segments("journal.jsonl").read()) == b"a\n"
        bucket.remove(".replaced", *OURS)
        left = {path.rsplit("/", 1)[-1] for path in filesystem.find(folder)}
        assert left == {"theirs.txt", "in_use.json"}
    assert not filesystem.exists(f"{folder}/in_use.json")
    assert list((tmp_path / "cache" / "outputs").iterdir()) == []


def test_a_run_in_a_bucket_holds_it(address: str, quick: None) -> None:
    with copy_of(address, WHOLE), pytest.raises(OutputError, match="another run is at work"), copy_of(address, WHOLE):
        pass


def test_errors_name_the_bucket_and_not_the_copy(address: str) -> None:
    with pytest.raises(OutputError) as caught, copy_of(address, WHOLE) as bucket:
        raise OutputError(f"--output_dir {bucket.folder} already holds regen.json")
    assert str(caught.value) == f"--output_dir {address} already holds regen.json"


def test_copies_of_killed_runs_are_cleared_away_and_those_of_others_stay(address: str, tmp_path: Path) -> None:
    copies = tmp_path / "cache" / "outputs"
    dead, alive = copies / "dead", copies / "alive"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (copies / f"{folder.name}.lock").touch()
    with FileLock(copies / "alive.lock"), copy_of(address, WHOLE):
        assert not dead.exists()
        assert alive.is_dir()


@contextmanager
def claimed(address: str, *, resume: bool = False, overwrite: bool = False) -> Iterator[Claim]:
    """A run in the bucket that has opened its folder."""
    with copy_of(address, WHOLE) as bucket:
        state = inspect(bucket.folder, resume=resume, overwrite=overwrite)
        with Claim(bucket.folder, state, overwrite=overwrite, bucket=bucket) as claim:
            claim.open()
            yield claim


def add(claim: Claim, name: str, text: bytes) -> None:
    assert claim.bucket is not None
    claim.bucket.segments(name).append(text)
    with (claim.folder / name).open("ab") as file:
        file.write(text)


def held(store: tuple[Any, str]) -> dict[str, bytes]:
    """What is in the bucket, but for the mark of the run at work."""
    found = {path[len(store[1]) + 1 :]: store[0].cat_file(path) for path in store[0].find(store[1])}
    return {name: data for name, data in found.items() if name != "in_use.json"}


@pytest.fixture
def finished(store: tuple[Any, str], address: str) -> dict[str, bytes]:
    """What a finished run has left in the bucket."""
    with claimed(address) as claim:
        add(claim, "sent.jsonl", b'{"session":"old"}\n')
        add(claim, "journal.jsonl", b'{"journal":1,"settings":{}}\n')
        for name, text in (("regen.json", b"[]"), ("run.json", b'{"stage":"generate"}')):
            (claim.folder / name).write_bytes(text)
        claim.publish("regen.json", "run.json")
    left = held(store)
    assert set(left) == {"sent.jsonl/0000000000", "journal.jsonl/0000000000", "regen.json", "run.json"}
    return left


def test_opening_takes_the_mark_of_a_complete_folder_away_in_the_bucket(
    store: tuple[Any, str], address: str, finished: dict[str, bytes]
) -> None:
    with claimed(address, resume=True):
        assert held(store) == {name: data for name, data in finished.items() if name != "run.json"}


def test_what_is_overwritten_in_a_bucket_goes_when_there_is_an_answer(
    store: tuple[Any, str], address: str, finished: dict[str, bytes]
) -> None:
    with claimed(address, overwrite=True) as claim:
        assert not set(held(store)) & set(finished)
        add(claim, "journal.jsonl", b"new\n")
        assert len(held(store)) > 1, "not before"
        claim.settle()
        assert held(store) == {"journal.jsonl/0000000000": b"new\n"}


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_what_is_overwritten_in_a_bucket_comes_back_where_there_was_no_answer(
    store: tuple[Any, str], address: str, finished: dict[str, bytes], killed: int
) -> None:
    for _ in range(killed):  # before they could put anything back
        with claimed(address, overwrite=True) as claim:
            add(claim, "sent.jsonl", b'{"session":"killed"}\n')
    with claimed(address, overwrite=True) as claim:
        assert all(name.startswith(".replaced/") for name in held(store)), "the new run has a folder of its own"
        for text in (b'{"session":"new"}\n', b'{"sent":[[0,1,1]]}\n'):
            add(claim, "sent.jsonl", text)
        claim.undo()
    assert held(store) == finished


@pytest.mark.parametrize("name", ["sent.jsonl", "regen.json"])
def test_a_run_that_is_killed_while_it_puts_things_aside_in_a_bucket_loses_nothing(
    store: tuple[Any, str],
    address: str,
    finished: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    move = Bucket.move

    def stopped(self: Bucket, one: str, to: str) -> None:
        if one == name:
            raise KeyboardInterrupt
        move(self, one, to)

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "move", stopped)
        with pytest.raises(KeyboardInterrupt), claimed(address, overwrite=True):
            pass
    assert any(found.startswith(".replaced/") for found in held(store))
    with claimed(address, overwrite=True) as claim:
        claim.undo()
    assert held(store) == finished


@pytest.mark.parametrize("name", ["sent.jsonl", "regen.json"])
def test_a_run_that_is_killed_while_it_puts_things_back_in_a_bucket_loses_nothing(
    store: tuple[Any, str],
    address: str,
    finished: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    move = Bucket.move

    def stopped(self: Bucket, one: str, to: str) -> None:
        if to == name:
            raise KeyboardInterrupt
        move(self, one, to)

    with monkeypatch.context() as patched, claimed(address, overwrite=True) as claim:
        patched.setattr(Bucket, "move", stopped)
        with pytest.raises(KeyboardInterrupt):
            claim.undo()
    assert any(found.startswith(".replaced/") for found in held(store))
    with claimed(address, overwrite=True) as claim:
        claim.undo()
    assert held(store) == finished


def test_what_a_run_without_an_answer_has_put_into_a_bucket_goes(store: tuple[Any, str], address: str) -> None:
    with claimed(address) as claim:
        add(claim, "sent.jsonl", b'{"session":"new"}\n')
        claim.undo()
    assert held(store) == {}
    store[0].pipe_file(f"{store[1]}/regen.json", b"[]")
    with claimed(address) as claim:
        add(claim, "journal.jsonl", b'{"journal":1,"settings":{}}\n')
        claim.undo()
    assert held(store) == {"regen.json": b"[]"}


@pytest.mark.parametrize("name", ["exp[1]", "exp*", "exp?", "{a,b}"])
def test_a_name_that_stands_for_others_is_refused(name: str) -> None:
    with pytest.raises(OutputError, match=r"must not hold any of"), copy_of(f"memory://x/{name}", WHOLE):
        pass


def test_a_copy_without_room_names_the_place(
    store: tuple[Any, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store[0].pipe_file(f"{store[1]}/regen.json", b"[]")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(store[0]), "get_file", full)
    with pytest.raises(OutputError, match=r"no room for a copy of .*ALPACA_RAY_CACHE"), copy_of(address, WHOLE):
        pass
    assert not store[0].exists(f"{store[1]}/in_use.json"), "the next run need not watch it"


@pytest.mark.parametrize("place", ["file", "/proc/nowhere"])
def test_a_place_for_copies_that_cannot_be_made_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALPACA_RAY_CACHE", str(tmp_path / place))
    with (
        pytest.raises(OutputError, match=rf"{place}.*: cannot be written: .*ALPACA_RAY_CACHE names another place"),
        copy_of(address, WHOLE),
    ):
        pass


def test_an_unknown_kind_of_store_is_an_error_of_ours(address: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere://b/run: cannot be used"):
        Bucket("nowhere://b/run", tmp_path, WHOLE).fetch()


def test_the_process_that_writes_knows_the_storages_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://h")
    monkeypatch.setenv("SECRET_OF_ANOTHER_KIND", "x")
    sent = pickle.dumps(Bucket("s3://b/run", tmp_path, WHOLE))
    assert b"SECRET_OF_ANOTHER_KIND" not in sent
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert pickle.loads(sent).uri == "s3://b/run"
    assert os.environ.pop("AWS_ENDPOINT_URL") == "http://h"
