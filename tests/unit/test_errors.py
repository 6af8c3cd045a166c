"""From an exception to one line and an exit code."""

from __future__ import annotations

import pickle
import signal
import sys

import pytest

from alpaca_ray import errors


def classes() -> list[type[errors.AlpacaRayError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("kind", classes())
def test_every_error_survives_pickling(kind: type[errors.AlpacaRayError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("one line")))
    assert type(copy) is kind
    assert str(copy) == "one line"


@pytest.mark.parametrize(("error", "code"), [(errors.DataError("bad\n file"), 2), (errors.TrainingError("stop"), 1)])
def test_one_line_and_the_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        errors.run_main(main)
    assert stopped.value.code == code
    assert capsys.readouterr().err == f"error: {' '.join(str(error).split())}\n"


def test_an_unexpected_exception_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        errors.run_main(main)


def test_the_cause_inside_wrappers_is_found() -> None:
    inner = errors.ModelError("no model")
    outer = RuntimeError("worker died")
    outer.__cause__ = inner
    assert errors.find_cause(outer) is inner

    class ControllerError(Exception):
        def __init__(self) -> None:
            self.worker_failures = {0: outer}

    assert errors.find_cause(ControllerError()) is inner
    assert errors.find_cause(ValueError("other")) is None


def test_interrupts_exit_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        errors.run_main(main)
    assert stopped.value.code == 130


def test_a_job_that_is_terminated_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        sys.exit(signal.SIGTERM)  # what Ray's handler does

    with pytest.raises(SystemExit) as caught:
        errors.run_main(stop)
    assert caught.value.code == 143
    assert capsys.readouterr().err == "terminated\n"
    with pytest.raises(SystemExit) as caught:
        errors.run_main(lambda: sys.exit(3))
    assert caught.value.code == 3
