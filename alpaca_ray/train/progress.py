"""What a run shows: metrics.jsonl, the lines in the terminal. Pure."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpaca_ray.storage import write_atomic
from alpaca_ray.train.publish import RAY_FOLDER

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"  # which samples each step learnt, where that is recorded
PLOT_FILE = "loss.png"
LENGTHS_FILE = "lengths.png"
CARD_FILE = "README.md"
CARD_MARK = "<!-- written by alpaca_ray's jobs/train.py -->"
TRACKER_FOLDER = "trackers"
_POLL_SECONDS = 0.3
_PHASES = f"{RAY_FOLDER}/phases"  # lines for the terminal alone, while the run is at work

Row = Mapping[str, Any]


def read_metrics(folder: Path, name: str = METRICS_FILE) -> list[dict[str, Any]]:
    """Return the rows of a run's ``metrics.jsonl`` (or its sibling); a line that a crash cut off is left out."""
    path = folder / name
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return [row for line in text.splitlines() if (row := _row_of(line)) is not None]


def is_ours(samples: Path) -> bool:
    """Whether a file of that name is ours, by its first row: it is a usual name for somebody's data, too."""
    with samples.open(encoding="utf-8", errors="replace") as handle:
        first = handle.readline()
    return not first or set(_row_of(first) or ()) == {"step", "epoch", "worker", "ids"}


def rewind(folder: Path, step: int, name: str = METRICS_FILE) -> list[dict[str, Any]]:
    """Drop the rows after ``step``, which a run that starts there will write again, and return the others.

    Also drops lines that a crash cut off.
    """
    if not (folder / name).exists():
        return []
    rows = [row for row in read_metrics(folder, name) if row.get("step", 0) <= step]
    write_atomic(folder / name, "".join(_line(row) for row in rows))
    return rows


def append(folder: Path, row: Row, name: str = METRICS_FILE) -> None:
    """Append one row, whole beside those that other workers append.

    Raises:
        OSError: it cannot be written.
    """
    content = _line(row).encode()
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        written = os.write(descriptor, content)
        while written < len(content):  # a full disk takes a part, and refuses the next
            written += os.write(descriptor, content[written:])
    finally:
        os.close(descriptor)


def phase(folder: Path, line: str) -> None:
    """Let whoever follows a run show a line: what it begins with, where the next row may take minutes.

    Raises:
        OSError: it cannot be written.
    """
    if (folder / RAY_FOLDER).is_dir():  # the folder is this run's
        with (folder / _PHASES).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _line(row: Row) -> str:
    """Return a row as JSON, which has no word for what is no number or has no end: null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _row_of(line: str | bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def format_row(row: Row) -> str:
    """Return a row as a line for the terminal."""
    total = row.get("total_steps")
    head = f"step {row.get('step', 0)}/{total}" if total else f"step {row.get('step', 0)}"
    parts = [head]
    if row.get("eval_loss") is not None:
        parts.append(f"validation loss {row['eval_loss']:.4f}")
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4f}")
    if "stopped" in row:
        parts.append(f"stopped: {row['stopped']}")
    if "learning_rate" in row:
        parts.append(f"learning rate {row['learning_rate']:.2e}")
    if row.get("tokens_per_second"):
        parts.append(f"{row['tokens_per_second']:.0f} tokens/s")
    if row.get("model_flops_utilisation") is not None:
        parts.append(f"MFU {row['model_flops_utilisation']:.1%}")
    if row.get("padding_share") is not None:
        parts.append(f"padding {row['padding_share']:.0%}")
    if row.get("memory_bytes"):
        parts.append(f"{row['memory_bytes'] / 1e9:.2f} GB")
    if row.get("seconds_left") is not None:
        minutes, seconds = divmod(round(row["seconds_left"]), 60)
        hours, rest = divmod(minutes, 60)
        parts.append(f"{hours}:{rest:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left")
    return " | ".join(parts)


@contextmanager
def follow(folder: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Show each row and phase that workers append while the block runs: clean lines, without Ray's worker prefixes."""
    phases = folder / _PHASES
    told = 0
    path = folder / METRICS_FILE
    seen = path.read_bytes() if path.is_file() else b""
    inode = path.stat().st_ino if path.is_file() else None
    done = threading.Event()

    def poll_phases() -> None:
        nonlocal told
        if phases.is_file():
            lines = phases.read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines[told:]:
                show(line)
            told = len(lines)

    def poll() -> None:
        nonlocal seen, inode
        poll_phases()
        if not path.is_file():
            return
        with path.open("rb") as handle:
            found = os.fstat(handle.fileno()).st_ino
            if found != inode:  # rewound, which keeps the first rows and replaces the file
                seen, inode = _common_rows(seen, handle.read()), found
            handle.seek(len(seen))
            fresh = handle.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        seen += whole
        for line in whole.splitlines():
            if (row := _row_of(line)) is not None:
                show(format_row(row))

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            poll()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        poll()


def _common_rows(before: bytes, after: bytes) -> bytes:
    """Return the rows with which both contents begin."""
    common = b""
    for old, new in zip(before.splitlines(keepends=True), after.splitlines(keepends=True), strict=False):
        if old != new:
            break
        common += old
    return common
