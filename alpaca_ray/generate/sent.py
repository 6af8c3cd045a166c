"""``sent.jsonl``: what was sent, written before it is, so that a run that is killed knows what it may have to pay for.

The journal holds answers; this file holds attempts, a few bytes each. A line that says ``sent`` comes before the
request leaves; ``freed`` takes it back where the endpoint refused it or it never left; ``session`` begins a process's
lines. It is written without waiting for the disk: it outlives every process, and a machine that goes down may lose its
last moments. In a bucket it loses nothing: there a request waits until its line has arrived.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.journal import Mirror, repair

FILE_NAME = "sent.jsonl"
Attempt = tuple[int, Tokens]


class SentLog:
    """Appends to the file; until it is opened, lines wait."""

    def __init__(self) -> None:
        self._file: Any = None
        self._path: Path | None = None
        self._waiting: list[dict[str, Any]] = []
        self._mirror: Mirror | None = None
        self._unmirrored: list[bytes] = []
        self.mirrored = False

    def open(self, path: Path, mirror: Mirror | None = None) -> None:
        """Open the file, begin a session in it, and write what has been waiting.

        Args:
            mirror: gets every line, too, with the next ``flush``.

        Raises:
            OutputError: it cannot be written.
        """
        self._mirror = mirror
        self.mirrored = mirror is not None
        try:
            if path.exists():
                repair(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}; go on with --resume") from error
        self._path = path
        waiting, self._waiting = self._waiting, []
        self._write([{"session": uuid.uuid4().hex}, *waiting])  # no other run writes the same

    def sent(self, attempts: Iterable[Attempt]) -> None:
        """Note attempts that are about to be sent, each with the tokens that it can take at most."""
        self._write([{"sent": [[number, worst.prompt, worst.completion] for number, worst in attempts]}])

    def freed(self, request_ids: Collection[int]) -> None:
        """Note that the last attempts of these requests cost nothing."""
        if request_ids:
            self._write([{"freed": list(request_ids)}])

    def lost(self, attempts: Collection[Attempt]) -> None:
        """Note that the last attempts of these requests will never be heard of: they count in full."""
        if attempts:
            self._write([{"lost": [[number, worst.prompt, worst.completion] for number, worst in attempts]}])

    def flush(self) -> None:
        """Return when everything so far is in the mirror. May run in another thread, one call at a time.

        Raises:
            OutputError: it cannot be written.
        """
        lines, self._unmirrored = self._unmirrored, []
        if lines and self._mirror is not None:
            self._mirror.append(b"".join(lines))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self._file is None:
            self._waiting += rows
            return
        lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()
        data = memoryview(lines)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror}; go on with --resume") from error
        if self._mirror is not None:
            self._unmirrored.append(lines)


def read_lost(path: Path, answered: Collection[int]) -> Tokens:
    """Return what attempts may have cost of which no answer tells: each counts in full.

    Args:
        answered: requests with an outcome in the journal. Its account covers their last session; what earlier ones sent
            for them is lost.
    """
    if not path.is_file():
        return Tokens()
    lost = Tokens()
    sessions: list[defaultdict[int, list[Tokens]]] = [defaultdict(list)]
    with path.open("rb") as file:
        for line in file:
            row = _parse(line)
            if "session" in row:
                sessions.append(defaultdict(list))
            for number, prompt, completion in row.get("sent", ()):
                sessions[-1][number].append(Tokens(prompt, completion))
            for number in row.get("freed", ()):
                if sessions[-1].get(number):
                    sessions[-1][number].pop()
            for number, prompt, completion in row.get("lost", ()):
                lost += Tokens(prompt, completion)
                if sessions[-1].get(number):
                    sessions[-1][number].pop()
    covered: set[int] = set()
    for session in reversed(sessions):
        for number, attempts in session.items():
            if number in answered and number not in covered:
                covered.add(number)
                continue
            lost = sum(attempts, lost)
    return lost


def _parse(line: bytes) -> Mapping[str, Any]:
    """Return a line's content; nothing for one that a crash tore (others are whole: each is one write)."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
