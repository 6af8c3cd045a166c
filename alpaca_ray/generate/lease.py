"""A mark in a bucket that says which run is at work there, renewed as long as it is.

A lock of the file system ends with its process; an object stays. So a run renews its mark, and one that finds another's
watches whether it is renewed. No clocks are compared. Two that take the place of a dead one at the very same moment may
both pass: then the numbers of the journal's segments stop one of them.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from alpaca_ray.console import say
from alpaca_ray.errors import OutputError
from alpaca_ray.generate.segments import create, reaching

FILE_NAME = "in_use.json"
_RENEW_SECONDS = 5.0
_WATCH_SECONDS = 20.0
_LOOK_SECONDS = 1.0


class Lease:
    """A run's mark. Taken, it is renewed by a thread until it is given back."""

    def __init__(self, filesystem: Any, path: str, uri: str) -> None:
        """``path``: of the mark, as ``filesystem`` names it; ``uri``: the output folder, for people."""
        self._filesystem = filesystem
        self._path = path
        self._uri = uri
        self._mark = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "run": uuid.uuid4().hex,
        }
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Take the place of nobody, or of a run that is no more.

        Raises:
            OutputError: another run is at work, or the bucket cannot be written.
        """
        with reaching(f"--output_dir {self._uri}", advice=""):
            if not create(self._filesystem, self._path, self._content(0)):
                found = self._read()
                if found is not None and not _is_gone(found):
                    say(
                        f"{self._uri} is marked as in use by a run on {found.get('host')}: watching for "
                        f"{_WATCH_SECONDS:.0f} s whether it still is"
                    )
                    if self._changes(found):
                        raise self._refused()
                self._write(0)
            # Of two that come at once, the one whose mark was written over stands back.
            if not self._is_ours():
                raise self._refused()
            if create(self._filesystem, self._path, self._content(1)):
                say(f"warning: {self._uri}: this store writes over objects: nothing would part two runs in it")
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def give_back(self) -> None:
        """Remove the mark. One that cannot be removed is found dead by the next run."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        try:
            if self._is_ours():
                self._filesystem.rm_file(self._path)
        except Exception as error:  # noqa: BLE001 - of dozens of types; the run's work is done, and this does no harm
            say(f"warning: {self._uri}: its mark {FILE_NAME} could not be removed ({error})")

    def _renew(self) -> None:
        beat = 1
        while not self._ended.wait(_RENEW_SECONDS):
            beat += 1
            try:
                if not self._is_ours():  # this process was held up for so long that another run took its place
                    say(f"warning: {self._uri}: another run has taken this one for dead")
                    return
                self._write(beat)
            except Exception as error:  # noqa: BLE001 - of dozens of types; if it lasts, the journal's writer fails too
                say(f"warning: {self._uri}: its mark {FILE_NAME} could not be renewed ({error})")

    def _content(self, beat: int) -> bytes:
        return json.dumps({**self._mark, "beat": beat}).encode()

    def _write(self, beat: int) -> None:
        self._filesystem.pipe_file(self._path, self._content(beat))

    def _is_ours(self) -> bool:
        return (self._read() or {}).get("run") == self._mark["run"]

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._filesystem.cat_file(self._path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}  # half written
        return found if isinstance(found, dict) else {}

    def _changes(self, before: dict[str, Any]) -> bool:
        """Whether the mark is renewed while it is watched; one that is removed is not."""
        end = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            now = self._read()
            if now is None or now != before:
                return now is not None
        return False

    def _refused(self) -> OutputError:
        return OutputError(f"--output_dir {self._uri}: another run is at work in it: wait for it, or take another")


def _machine() -> str:
    """Return what processes share only where one can see whether the other lives; '' where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(mark: dict[str, Any]) -> bool:
    """Whether a mark is of a process of this machine that has ended."""
    here = _machine()
    return bool(here) and mark.get("machine") == here and not psutil.pid_exists(int(mark.get("pid") or 0))
