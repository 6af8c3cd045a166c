"""Signals that end a job: one exception for Ctrl-C and SIGTERM, and none of them in the middle of something."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and a job that is stopped
_terminated = False


def interrupt_on_sigterm() -> None:
    """Let SIGTERM raise ``KeyboardInterrupt``, as Ctrl-C does, unless somebody has set what it does.

    Ray hands a ``KeyboardInterrupt`` on that comes while it waits; of a ``SystemExit`` it changes the code.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def came() -> signal.Signals:
    """Return the signal behind a ``KeyboardInterrupt``."""
    return signal.SIGTERM if _terminated else signal.SIGINT


@contextmanager
def interrupts_say(text: str) -> Iterator[None]:
    """Give an interrupt that ends the block a text, where it has none, for ``errors.run_main`` to print.

    Raises:
        KeyboardInterrupt: there was one.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*(error.args or (text,))) from error


@contextmanager
def kept() -> Iterator[None]:
    """Keep the handlers of this process through a block that sets others, as the start of Ray does for SIGTERM.

    Ray also puts a native handler before that of Python, which prints a stack. Where the process had no handler of its
    own, Ray's stays, without the stack.
    """
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            wanted = signal.getsignal(number) if handler in (None, signal.SIG_DFL) else handler
            if wanted is not None:
                signal.signal(number, wanted)


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Let an interrupt that comes in the block come at its end. Elsewhere than in the main thread there are none."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    if not _in_main_thread() or None in handlers.values():
        yield
        return
    came: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    global _terminated
    _terminated = True
    raise KeyboardInterrupt
