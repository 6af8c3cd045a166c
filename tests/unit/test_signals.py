from __future__ import annotations

import signal
import threading

import pytest

from alpaca_ray.signals import interrupts_later


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_comes_when_the_block_has_ended(number: signal.Signals) -> None:
    class StoppedError(BaseException):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    done = []
    before = signal.signal(number, stop)
    try:
        with pytest.raises(StoppedError), interrupts_later():
            done.append(signal.raise_signal(number))
        assert done == [None]
        assert signal.getsignal(number) is stop
        with interrupts_later():
            pass  # and none comes where there was none
    finally:
        signal.signal(number, before)


def test_an_error_in_the_block_is_not_lost() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), interrupts_later():
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone() -> None:
    found = []

    def work() -> None:
        with interrupts_later():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_a_handler_that_python_does_not_know_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(signal, "getsignal", lambda _: None)  # as of one that another language's library has set
        with interrupts_later():
            pass
    assert signal.getsignal(signal.SIGINT) is before
