"""Real programs, started and ended cleanly: what end-to-end tests and benchmarks share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command until the block ends; then interrupt it, and its whole group if it does not listen.

    Args:
        options: those of ``subprocess.Popen``.
    """
    child = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield child
    finally:
        for number, patience in ((signal.SIGINT, 30), (signal.SIGTERM, 15)):
            if child.poll() is None:
                child.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(patience)
        with suppress(ProcessLookupError):  # whatever the child has left behind in its own session
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)
