"""Rate limits of an endpoint, held by every run on this machine that shares its key.

Requests are spaced evenly, by the generic cell rate algorithm (ITU-T I.371; virtual scheduling): its state is the time
at which the next one is due. Tokens are spaced by what a request really took so far, on average, and held below the
limit in every window of a minute, in which a request counts with all that it may take until it is back. The state lives
in a small file that runs lock in turn, so that two runs, or a run that is killed and resumed at once, stay below one
limit together.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alpaca_ray.errors import OutputError

# Spacing beyond what the limit asks for: room for the differences in how long requests travel. Counted where they
# arrive, a window of a minute then stays below the limit.
_MARGIN = 0.015
_HORIZON = 0.5  # seconds ahead that requests are scheduled
_AHEAD = 8  # seconds ahead that a place may have been taken
_WINDOW = 60
_WEIGHT = 0.05  # of the newest request in the mean of what requests take
_LONGEST_WAIT = 3600.0  # a state that is further ahead comes from a clock that has been set back


@dataclass(frozen=True)
class Rates:
    """An endpoint's limits; None where there is none."""

    requests_per_second: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return any(value is not None for value in asdict(self).values())

    @property
    def seconds_per_request(self) -> float:
        """Seconds between two requests; 0 without a limit."""
        spacings = [1 / self.requests_per_second] if self.requests_per_second else []
        spacings += [60 / self.requests_per_minute] if self.requests_per_minute else []
        return (1 + _MARGIN) * max(spacings, default=0.0)

    @property
    def tokens_per_window(self) -> float:
        """Tokens that any minute may hold."""
        return (self.tokens_per_minute or math.inf) / (1 + _MARGIN)


@dataclass
class _State:
    """What the file holds.

    Attributes:
        requests: when the next request is due, in seconds since the epoch.
        tokens: when the tokens sent so far, at their average, leave room for the next request.
        used: second to tokens of the requests sent in it; what is under way with all that it may take.
        mean: tokens of a request, on average; 0 before the first is back.
    """

    requests: float = 0.0
    tokens: float = 0.0
    used: dict[str, float] = field(default_factory=dict)
    mean: float = 0.0


class Pacer:
    """Says when a request may be sent."""

    def __init__(self, rates: Rates, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """Make a pacer; ``path`` is the file that it shares with other runs, None where it shares with nobody.

        Raises:
            OutputError: the file cannot be written.
        """
        self._rates = rates
        self._path = path
        self._clock = clock
        self._own = _State()
        if path is not None and rates.any:
            with self._state(clock()):  # finds a folder that cannot be written before anything is sent
                pass

    def reserve(self, tokens: int, lead: float = 0.0) -> tuple[float | None, float]:
        """Reserve a place for one request and the tokens that it may take at most.

        Args:
            lead: seconds before which the request cannot leave.

        Returns:
            When it may go, in seconds since the epoch (0 without a limit: at once), and 0; or None where there is no
            place yet, and the seconds until asking again makes sense.
        """
        if not self._rates.any:
            return 0.0, 0.0
        now = self._clock()
        with self._state(now) as state:
            at = max(now + lead, state.requests, state.tokens)
            if at > now + lead + _HORIZON:
                return None, at - now - lead - _HORIZON
            if self._rates.tokens_per_minute is not None:
                wait = self._until_room(state, tokens, at)
                if wait:
                    return None, wait
                second = str(int(at))
                state.used[second] = state.used.get(second, 0.0) + tokens
                state.tokens = at + _WINDOW * (state.mean or tokens) / self._rates.tokens_per_window
            state.requests = at + self._rates.seconds_per_request
            return at, 0.0

    def refund(self, at: float, reserved: int, actual: int) -> None:
        """Note what a request took, of what was reserved for it at ``at``."""
        if self._rates.tokens_per_minute is None or not at:
            return
        with self._state(self._clock()) as state:
            second = str(int(at))
            if second in state.used:
                state.used[second] = max(0.0, state.used[second] - reserved + actual)
            if actual:
                state.mean += (actual - state.mean) * (_WEIGHT if state.mean else 1.0)

    def _until_room(self, state: _State, tokens: int, at: float) -> float:
        """Return the seconds after which the window before ``at`` will have room for ``tokens``; 0 where it has."""
        left = sum(state.used.values()) + tokens - self._rates.tokens_per_window
        if left <= 0 or not any(state.used.values()):  # one that exceeds the limit by itself goes alone
            return 0.0
        for second in sorted(state.used, key=int):
            left -= state.used[second]
            if left <= 0:
                break
        return max(0.05, int(second) + _WINDOW + 1 - at)

    @contextmanager
    def _state(self, now: float) -> Iterator[_State]:
        if self._path is None:
            yield _current(self._own, now)
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                state = _current(_read(file.read()), now)
                yield state
                file.seek(0)
                file.truncate()
                file.write(json.dumps(asdict(state)))
                file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot be written ({error.strerror}); rate limits are kept there"
            ) from error


def shared_path(folder: Path, base_url: str, key: str) -> Path:
    """Return the file that runs against one endpoint with one key share; it holds neither of them."""
    digest = hashlib.sha256(f"{base_url}\0{key}".encode()).hexdigest()[:16]
    return folder / "limits" / f"{digest}.json"


def _read(text: str) -> _State:
    try:
        content = json.loads(text)
        used = {str(int(second)): float(tokens) for second, tokens in content["used"].items()}
        state = _State(float(content["requests"]), float(content["tokens"]), used, float(content["mean"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return _State()  # new, or cut short by a machine that went down: as if nothing had been sent for a minute
    numbers = (state.requests, state.tokens, state.mean, *used.values())
    return state if all(math.isfinite(number) and number >= 0 for number in numbers) else _State()


def _current(state: _State, now: float) -> _State:
    """Leave out what is older than the window, and what only a clock that was set back can have written."""
    state.requests = min(state.requests, now + _LONGEST_WAIT)
    state.tokens = min(state.tokens, now + _LONGEST_WAIT)
    state.used = {
        second: used for second, used in state.used.items() if now - _WINDOW - 1 < int(second) <= now + _AHEAD
    }
    return state
