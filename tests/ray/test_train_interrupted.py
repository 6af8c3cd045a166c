"""jobs/train.py as a command that is interrupted or stopped: what it says, its exit code, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import alpaca_ray
from alpaca_ray.records import read_records
from alpaca_ray.train.progress import read_metrics
from alpaca_ray.train.publish import checkpoints, newest_checkpoint

JOB = Path(alpaca_ray.__file__).parent.parent / "jobs" / "train.py"
STEPS = 100_000

pytestmark = pytest.mark.ray  # starts clusters of its own


@pytest.fixture(scope="module")
def flags(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("data") / "data.json"
    records = [{k: r[k] for k in ("instruction", "input", "output")} for r in read_records("seeds")[:12]]
    data.write_text(json.dumps(records))
    text = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 0 --batch_size 4 --threads 1 --max_steps {STEPS} "
        "--save_steps 5 --logging_steps 1"
    )
    return text.split()


@contextmanager
def job(flags: list[str], folder: Path, ready: Callable[[], bool]) -> Iterator[subprocess.Popen[str]]:
    """Start the job in a session of its own, and yield it when it has got as far as asked for."""
    child = subprocess.Popen(
        [sys.executable, str(JOB), *flags, "--output_dir", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
        # Where the tests themselves run in the background of a shell, an interrupt is ignored, by children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not ready():
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(60)


def ends(child: subprocess.Popen[str], number: signal.Signals, *, group: bool) -> tuple[str, str]:
    """Send a signal, to the whole process group as a terminal does, and return the output and the last line."""
    if group:
        os.killpg(child.pid, number)
    else:
        child.send_signal(number)
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 128 + number, (child.returncode, errors)
    assert not re.search(r"Traceback|\*\*\*|@ +0x|SIG|[Ww]orker|ERROR", errors), errors
    return output, errors.splitlines()[-1]


def check_says_where(line: str, word: str, folder: Path) -> None:
    newest = newest_checkpoint(folder)
    assert newest is not None
    step = max(read_metrics(folder)[-1]["step"], int(newest.name.rpartition("-")[2]))
    assert line == (
        f"{word} after step {step}/{STEPS}, the last one shown or saved; the newest whole checkpoint is {newest}; "
        "the same command goes on from it with --resume"
    )


def test_ctrl_c_in_a_terminal_says_where_the_run_stopped(flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with job(flags, folder, lambda: bool(checkpoints(folder))) as child:
        output, line = ends(child, signal.SIGINT, group=True)
    check_says_where(line, "interrupted", folder)
    lines = output.splitlines()
    begin = [lines.index(text) for text in ("starting 1 worker", "loading the model")]
    first = next(index for index, text in enumerate(lines) if text.startswith("step 1/"))
    assert begin == sorted(begin)
    assert begin[-1] < first
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".encoded"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "word"),
    [
        (signal.SIGINT, False, "interrupted"),
        (signal.SIGTERM, False, "terminated"),
        (signal.SIGTERM, True, "terminated"),  # as `timeout` and a stopped job do
    ],
)
def test_a_run_that_is_stopped_says_where_and_goes_on(
    flags: list[str], tmp_path: Path, number: signal.Signals, group: bool, word: str
) -> None:
    folder = tmp_path / "out"
    with job(flags, folder, lambda: len(checkpoints(folder)) > 1) as child:
        _, line = ends(child, number, group=group)
    check_says_where(line, word, folder)
    newest = newest_checkpoint(folder)
    assert newest is not None
    step = int(newest.name.rpartition("-")[2])
    with job([*flags, "--resume"], folder, lambda: read_metrics(folder)[-1]["step"] > step + 12) as child:
        output, line = ends(child, number, group=group)
    assert f"Restarting from {newest}" in output.splitlines()
    check_says_where(line, word, folder)
    steps = [row["step"] for row in read_metrics(folder)]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_run_stopped_before_its_first_step_leaves_the_folder_as_it_was(flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with job(flags, folder, lambda: (folder / ".replaced").is_dir()) as child:
        _, line = ends(child, signal.SIGTERM, group=False)
    assert line == "terminated before its first step: nothing was written"
    assert not folder.exists()
    (folder / "checkpoint-3").mkdir(parents=True)
    for name in ("checkpoint-3/trainer_state.json", "metrics.jsonl"):
        (folder / name).write_text("old")
    with job([*flags, "--overwrite"], folder, lambda: (folder / ".replaced").is_dir()) as child:
        _, line = ends(child, signal.SIGINT, group=True)
    assert line == f"interrupted before its first step: nothing was written, {folder} is as it was"
    assert {path.name for path in folder.iterdir()} == {"checkpoint-3", "metrics.jsonl"}
