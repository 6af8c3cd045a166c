"""Runs that are stopped at any moment and gone on with: the same bytes as of a run that was never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from dedup_support import FILES, run, save, some_records

import alpaca_ray
from alpaca_ray.dedup import inputs, output, unfinished
from alpaca_ray.dedup import run as dedup_run
from alpaca_ray.dedup.account import Account
from alpaca_ray.dedup.stream import read_items
from alpaca_ray.dedup.unfinished import Progress
from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.hub_rows import StreamBrokenError

RESULTS = ("kept.jsonl", "rejected.jsonl")


@pytest.fixture(autouse=True)
def notes_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_SECONDS_BETWEEN_NOTES", 0.0)
    monkeypatch.setattr(dedup_run, "_BATCH", 16)


class StopError(BaseException):
    """Stands for a signal."""


def stop_after(monkeypatch: pytest.MonkeyPatch, records: int, error: BaseException) -> None:
    """Let the next run end with ``error`` when so many records have been read."""

    def items(sources: Any) -> Any:
        for number, item in enumerate(read_items(sources)):
            if number == records:
                monkeypatch.setattr(dedup_run, "read_items", read_items)
                raise error
            yield item

    monkeypatch.setattr(dedup_run, "read_items", items)


def results(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in RESULTS]


@pytest.mark.parametrize("stats", ["none", "full"])
def test_a_run_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stats: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = some_records(4, 150)
    records[20:20] = [dict(records[3]), dict(records[3])]  # ids count the occurrences over all sessions
    given: dict[str, Any] = {"similarity_stats": stats, "seed_tasks_path": save(tmp_path / "s.json", records[:5])}
    evaluation = tmp_path / "e.json"
    evaluation.write_text(json.dumps([{"prompt": records[40]["instruction"]}]))
    given["decontaminate"] = [str(evaluation)]
    sources = save(tmp_path / "a.json", records[:70]), save(tmp_path / "b.jsonl", records[70:])
    wanted = run(tmp_path / "whole", *sources, **given)
    folder = tmp_path / "out"
    for number, after in enumerate((40, 41, 90, 151)):
        stop_after(monkeypatch, after, KeyboardInterrupt() if number % 2 else StopError())
        with pytest.raises((KeyboardInterrupt, StopError)):
            run(folder, *sources, resume=number > 0, **given)
        for name in RESULTS:  # what was written after the last note, torn in the middle
            with (folder / unfinished.FOLDER / name).open("ab") as file:
                file.write(b'{"instruction": "torn')
        with (folder / unfinished.FOLDER / "progress.jsonl").open("ab") as file:
            file.write(b'{"records": 99')
        assert not (folder / "kept.jsonl").exists()
    assert "stopped: 32 records decided; the same command with --resume" in capsys.readouterr().out
    run(folder, *sources, resume=True, **given)
    assert "going on after 144 records" in capsys.readouterr().out
    assert results(folder) == results(wanted)
    assert {path.name for path in folder.iterdir()} == FILES
    metrics, whole = (json.loads((place / "metrics.json").read_text()) for place in (folder, wanted))
    assert {name: metrics[name] for name in ("records", "kept", "rejected")} == {
        name: whole[name] for name in ("records", "kept", "rejected")
    }


def test_an_unfinished_run_is_neither_lost_nor_mixed_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "d.jsonl", some_records(1, 60))
    folder = tmp_path / "out"
    stop_after(monkeypatch, 50, StopError())
    with pytest.raises(StopError):
        run(folder, source)
    with pytest.raises(OutputError, match=r"holds an unfinished run \(48 records decided\): give --resume"):
        run(folder, source)
    with pytest.raises(OutputError, match=r"other values or files: --threshold \(there 0\.7, now 0\.6\); use"):
        run(folder, source, resume=True, threshold=0.6)
    with pytest.raises(OutputError, match=r"files: --similarity_stats \(there none, now top\); use"):
        run(folder, source, resume=True, similarity_stats="top")
    with pytest.raises(OutputError, match="files: --seed_tasks_path; use"):
        run(folder, source, resume=True, seed_tasks_path="seeds")
    evaluation = save(tmp_path / "e.json", some_records(9, 3))
    with pytest.raises(OutputError, match="files: --decontaminate; use"):
        run(folder, source, resume=True, decontaminate=[evaluation])
    with pytest.raises(OutputError, match=r"--decontaminate, --decontaminate_threshold \(there .*, now 0\.5\); use"):
        run(folder, source, resume=True, decontaminate=[evaluation], decontaminate_threshold=0.5)
    with monkeypatch.context() as patched:
        patched.setattr(inputs, "__version__", "9.9")
        with pytest.raises(OutputError, match=r"alpaca_ray itself \(there .*, now 9\.9\)"):
            run(folder, source, resume=True)
    text = Path(source).read_text()
    Path(source).write_text(text.replace("o7", "o8"))
    with pytest.raises(OutputError, match="files: --data_path; use"):
        run(folder, source, resume=True)
    Path(source).write_text(text)
    run(folder, source, resume=True)
    with pytest.raises(OutputError, match="a finished run cannot be resumed"):
        run(folder, source, resume=True)
    stop_after(monkeypatch, 50, StopError())
    with pytest.raises(StopError):
        run(folder, source, overwrite=True)
    before = results(folder)
    stop_after(monkeypatch, 1000, StopError())
    run(folder, source, overwrite=True, threshold=0.3)
    assert results(folder) != before
    assert {path.name for path in folder.iterdir()} == FILES


def test_resume_where_nothing_was_decided_starts(tmp_path: Path) -> None:
    source = save(tmp_path / "d.jsonl", some_records(1, 40))
    assert results(run(tmp_path / "a", source, resume=True)) == results(run(tmp_path / "b", source))


def test_notes_that_the_files_do_not_bear_out_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power a file may be shorter than what was noted of it."""
    source = save(tmp_path / "d.jsonl", some_records(1, 60))
    stop_after(monkeypatch, 50, StopError())
    with pytest.raises(StopError):
        run(tmp_path / "out", source)
    kept = tmp_path / "out" / unfinished.FOLDER / "kept.jsonl"
    os.truncate(kept, kept.stat().st_size - 1)
    run(tmp_path / "out", source, resume=True)
    assert results(tmp_path / "out") == results(run(tmp_path / "whole", source))


def test_counts_and_time_go_on_from_an_earlier_session() -> None:
    account = Account(Progress(records=5, kept=3, rejected={"too_similar": 2}, seconds=1000.0))
    account.add(None)
    account.add("contaminated")
    assert (account.records, account.kept, account.metrics()["rejected"]) == (
        7,
        4,
        {"contaminated": 1, "too_similar": 2},
    )
    assert 1000 <= account.metrics()["seconds"] < 1100


def test_what_is_noted_is_on_the_disk(tmp_path: Path) -> None:
    with output.Results(tmp_path, {}) as results:
        for number in range(3):
            results.keep({"instruction": f"i{number}"}, "d: record 0")
            results.reject({"reason": "x"}, "d: record 0")
            results.note(2 * number + 2, number + 1, {"too_similar": number + 1}, 0.5)
            found = unfinished.look(tmp_path / unfinished.FOLDER)
            assert found is not None
            assert (found.progress.records, found.progress.kept, found.complete) == (2 * number + 2, number + 1, False)


def test_what_is_noted_is_synchronised_before_it_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        here = os.fstat(descriptor).st_ino
        synced.extend(path.name for path in (tmp_path / unfinished.FOLDER).iterdir() if path.stat().st_ino == here)

    with output.Results(tmp_path, {}) as results:
        results.keep({"instruction": "i"}, "d: record 0")
        monkeypatch.setattr(os, "fsync", fsync)
        results.note(1, 1, {}, 0.5)
        assert synced == ["kept.jsonl", "rejected.jsonl", "progress.jsonl"]


def test_a_run_that_named_less_of_what_decides_is_another(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"--tokenizer \(there None, now rouge\)"):
        unfinished.check_same({"threshold": 0.7}, {"threshold": 0.7, "tokenizer": "rouge"}, tmp_path)


def test_a_record_at_fault_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    """Its file is another one once it is mended."""
    records = [*some_records(1, 60), {"output": "no instruction"}]
    with pytest.raises(DataError, match="record 60: has no 'instruction'"):
        run(tmp_path / "out", save(tmp_path / "d.jsonl", records))
    assert {path.name for path in tmp_path.iterdir()} == {"d.jsonl"}


def test_a_stream_that_breaks_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "d.jsonl", some_records(1, 60))
    stop_after(monkeypatch, 50, StreamBrokenError("x/y: cannot be read on after 50 records: reset"))
    with pytest.raises(StreamBrokenError):
        run(tmp_path / "out", source)
    run(tmp_path / "out", source, resume=True)
    assert "going on after 48 records" in capsys.readouterr().out
    assert results(tmp_path / "out") == results(run(tmp_path / "whole", source))


def test_a_killed_job_is_gone_on_with(tmp_path: Path) -> None:
    """kill -9, of a process of its own, at a moment of chance."""
    rng = random.Random()
    source = save(tmp_path / "d.jsonl", some_records(6, 4000))
    wanted = results(run(tmp_path / "whole", source, similarity_stats="top"))
    job = (
        "import sys; from alpaca_ray.dedup import output, run; output._SECONDS_BETWEEN_NOTES = 0; run._BATCH = 16;"
        "from alpaca_ray.settings.cli import parse_settings; from alpaca_ray.settings.dedup import DedupSettings;"
        "from alpaca_ray.dedup.pipeline import dedup; dedup(parse_settings(DedupSettings, description=''))"
    )
    folder = tmp_path / "out"
    command = [sys.executable, "-c", job, "--data_path", source, "--output_dir", str(folder)]
    command += ["--similarity_stats", "top", "--num_cpus", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(alpaca_ray.__file__).parent.parent)}
    progress = folder / unfinished.FOLDER / "progress.jsonl"
    killed = 0
    for flags in ([], ["--resume"], ["--resume"]):
        before = progress.stat().st_size if progress.exists() else 0
        process = subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (progress.exists() and progress.stat().st_size > before + 500):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        assert process.wait(60) in (-signal.SIGKILL, 0)
    assert killed
    if progress.exists():
        subprocess.run([*command, "--resume"], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=120)
    assert results(folder) == wanted
    assert {path.name for path in folder.iterdir()} - {".lock"} == FILES
