"""jobs/generate.py as a command: its help, and what is left when it is stopped in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_generate import CLASSIC, assert_equal_entries, names, read_json, read_lines, reference

import alpaca_ray
from alpaca_ray.generate.pipeline import generate
from alpaca_ray.generate.run import make_plan
from alpaca_ray.generate.sent import read_lost
from alpaca_ray.settings.base import field_names
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

JOB = Path(alpaca_ray.__file__).parent.parent / "jobs" / "generate.py"
TARGET = 60

pytestmark = pytest.mark.ray  # starts clusters of its own


def given(folder: Path, server: StandInServer) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "base_url": server.url,
        "num_instructions_to_generate": TARGET,
        "max_in_flight": 4,
        "request_batch_size": 2,
        "num_cpus": 1,
        **CLASSIC,
    }


@contextmanager
def job_at_work(folder: Path, server: StandInServer) -> Iterator[subprocess.Popen[str]]:
    """Start the job in a session of its own, and yield it when its journal holds some answers, but not all."""
    flags = [text for name, value in given(folder, server).items() for text in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    child = subprocess.Popen(
        [sys.executable, str(JOB), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
        # Where the tests themselves run in the background of a shell, an interrupt is ignored, by children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        journal = folder / "journal.jsonl"
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 5:
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(60)


def at_rest(path: Path) -> list[int]:
    """Return the numbers of the requests in a journal once nothing is added any more."""
    size = -1
    while size != (size := path.stat().st_size):
        time.sleep(1.0)
    lines = path.read_bytes().split(b"\n")[1:-1]
    return [json.loads(line)["request_id"] for line in lines]


def resume(folder: Path, server: StandInServer, journaled: list[int]) -> None:
    """Go on, and check that nothing that was answered is asked again, and that the end is what it would have been."""
    settings = GenerateSettings.resolve({**given(folder, server), "resume": True})
    plan = make_plan(settings)
    prompts = [plan.prompts.make(number).text for number in journaled]
    assert [server.prompts[prompt] for prompt in prompts] == [1] * len(prompts)
    generate(settings)
    assert [server.prompts[prompt] for prompt in prompts] == [1] * len(prompts)
    rows = read_lines(folder / "journal.jsonl")[1:]
    assert len({row["request_id"] for row in rows}) == len(rows) > len(journaled)
    regen = read_json(folder / "regen.json")
    assert len(regen) == TARGET
    assert_equal_entries(regen, reference(rows, [], TARGET))
    assert read_json(folder / "run.json")["complete"] is True


def test_help_names_every_setting() -> None:
    done = subprocess.run([sys.executable, str(JOB), "--help"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    words = set(done.stdout.replace(",", " ").split())
    assert {f"--{name}" for name in [*field_names(GenerateSettings), "config"]} <= words
    for field in GenerateSettings.model_fields.values():
        assert "".join((field.description or "?").split()) in "".join(done.stdout.split())  # lines may break anywhere


def test_a_run_that_is_killed_goes_on_where_it_was(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve({"latency": 0.4})) as server:
        with job_at_work(tmp_path / "out", server) as child:
            child.kill()  # the driver alone, and so that it cannot say goodbye
            assert child.wait(30) == -signal.SIGKILL
            journaled = at_rest(tmp_path / "out" / "journal.jsonl")
        resume(tmp_path / "out", server, journaled)


def test_a_run_that_is_interrupted_writes_what_it_has_and_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with standin(StandIn.resolve({"latency": 0.4})) as server:
        with job_at_work(folder, server) as child:
            os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C does
            _, errors = child.communicate(timeout=120)
            assert child.returncode == 130
            assert errors.splitlines()[-1] == "interrupted"
            assert "Traceback" not in errors
        assert names(folder) == ["journal.jsonl", "metrics.json", "regen.json", "rejected.jsonl", "sent.jsonl"]
        rows = read_lines(folder / "journal.jsonl")[1:]
        before = read_json(folder / "regen.json")
        assert before
        assert_equal_entries(before, reference(rows, [], TARGET)[: len(before)])
        assert read_json(folder / "metrics.json")["requests"] == len(rows)
        resume(folder, server, [row["request_id"] for row in rows])
        assert read_json(folder / "regen.json")[: len(before)] == before


def test_a_run_whose_ledger_dies_before_an_answer_keeps_what_it_sent(ray_cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with standin(StandIn.resolve({"latency": 5.0})) as server:
        settings = {**given(folder, server), "max_tokens_total": 10_000_000}
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        child = subprocess.Popen([sys.executable, str(JOB), *flags], stderr=subprocess.PIPE, text=True)
        try:
            sent = folder / "sent.jsonl"
            while not sent.exists() or '"sent"' not in sent.read_text():
                assert child.poll() is None
                time.sleep(0.01)
            family = psutil.Process(child.pid).children(recursive=True)
            (ledger,) = [process for process in family if process.cmdline()[0].startswith("ray::Ledger")]
            ledger.kill()
            _, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 1
    assert "error: the process that writes the journal has died: go on with --resume" in errors
    assert "Traceback" not in errors
    assert read_lost(folder / "sent.jsonl", ()).total > 0
