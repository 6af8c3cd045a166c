"""One picklable exception tree, and the one place that turns it into an exit code.

Every class is also the standard-library type that a caller would expect to catch, so code that knows nothing of this
package still handles its errors.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from alpaca_ray import signals


class AlpacaRayError(Exception):
    """Base of every error that this package raises on purpose. Its text is one line, complete, and says what to do."""

    exit_code = 1


class UserError(AlpacaRayError, ValueError):
    """Something the user gave cannot be used. Raised before anything is loaded or written."""

    exit_code = 2


class SettingsError(UserError):
    """A flag or a config key is unknown, has the wrong type, or contradicts another one."""


class DataError(UserError):
    """An input file is missing, empty, or holds something that is no instruction record."""


class ModelError(UserError):
    """The named model does not exist, is not a model, or cannot run the way it was asked to."""


class OutputError(UserError):
    """The output folder cannot be used as asked."""


class TeacherError(UserError, ConnectionError):
    """The teacher endpoint refuses, is not reachable, or rejects the key or the model."""


class ClusterError(AlpacaRayError, RuntimeError):
    """The Ray cluster cannot do what the settings ask of it."""


class GenerationError(AlpacaRayError, RuntimeError):
    """Generation stopped short of its target; what it made so far is written."""


class EstimateError(AlpacaRayError, RuntimeError):
    """What a run will need cannot be told from its model's shapes alone. The run itself may go on."""


class TrainingError(AlpacaRayError, RuntimeError):
    """Training stopped for a reason that a retry would not mend."""


def find_cause(error: BaseException) -> AlpacaRayError | None:
    """Return the first of our own errors in a chain, also from inside the wrappers that Ray puts around it."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, AlpacaRayError):
            # Ray makes a class on the fly that is both RayTaskError and the cause's type; the plain cause is inside.
            return getattr(current, "cause", None) or current
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
        worker_failures = getattr(current, "worker_failures", None)
        if isinstance(worker_failures, dict):
            queue += [failure for failure in worker_failures.values() if isinstance(failure, BaseException)]
    return None


def run_main(main: Callable[[], None]) -> None:
    """Run a job's main function; print an error of ours as one line and exit with its code (2: the user's, 1: other).

    Ctrl-C ends with 130 and SIGTERM with 143, after a line that says so and what the ``KeyboardInterrupt`` says.

    An unexpected exception keeps its traceback: hiding it would hide a defect of ours.
    """
    signals.interrupt_on_sigterm()
    try:
        main()
    except KeyboardInterrupt as error:
        number = signals.came()
        sys.stdout.flush()
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        print(" ".join([word, *map(str, error.args)]), file=sys.stderr, flush=True)
        sys.exit(128 + number)
    except SystemExit as error:
        if error.code != signal.SIGTERM:  # what Ray makes of that signal
            raise
        print("terminated", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but Python would complain while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        known = find_cause(error)
        if known is None:
            raise
        sys.stdout.flush()
        print(f"error: {' '.join(str(known).split())}", file=sys.stderr)
        sys.exit(known.exit_code)
