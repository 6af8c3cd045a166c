"""The pacer against a clock of its own: minutes of demand, and no window of a minute above the limit."""

from __future__ import annotations

import heapq
import json
import os
import random
import stat
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.limits import Pacer, Rates, shared_path

START = 1_750_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def pace(pacers: list[Pacer], clock: Clock, seconds: float, tokens: int = 1) -> list[float]:
    """Let each pacer send as much as it may for so long; return when requests go, in seconds since ``START``."""
    times = []
    end = clock.now + seconds
    waits = dict.fromkeys(range(len(pacers)), 0.0)
    while True:
        number = min(waits, key=lambda number: waits[number])
        clock.now = max(clock.now, START + waits[number])
        if clock.now >= end:
            return sorted(times)
        at, wait = pacers[number].reserve(tokens)
        if at is not None:
            assert clock.now <= at <= clock.now + 0.5, "a place is taken shortly before its time"
            assert wait == 0
            times.append(at - START)
        else:
            assert wait > 0
        waits[number] = clock.now - START + wait


def state(**given: Any) -> bytes:
    """Return what a file of the pacer's holds, with something else in it."""
    return json.dumps({"requests": 0.0, "tokens": 0.0, "used": {}, "mean": 0.0, **given}).encode()


def most_within(times: list[float], seconds: float, weights: list[int] | None = None) -> int:
    """Return the most there is in any half-open window."""
    sums = [0, *accumulate(weights or [1] * len(times))]
    return max(sums[bisect_left(times, time + seconds)] - sums[place] for place, time in enumerate(times))


@pytest.mark.parametrize("limit", [60, 100, 600, 3000, 2.5 * 60])
def test_a_minutes_limit_is_used_and_never_exceeded(limit: float) -> None:
    clock = Clock()
    times = pace([Pacer(Rates(requests_per_minute=limit), clock=clock)], clock, 240)
    assert 0.97 * limit <= most_within(times, 60) <= limit
    assert len(times) >= 0.97 * limit * 4
    assert most_within(times, 1) <= limit / 60 + 1, "evenly spaced"


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (7, 7)])
def test_small_limits(limit: int, most: int) -> None:
    clock = Clock()
    assert most_within(pace([Pacer(Rates(requests_per_minute=limit), clock=clock)], clock, 600), 60) == most


def test_the_tightest_limit_counts() -> None:
    clock = Clock()
    both = Rates(requests_per_second=10, requests_per_minute=300)
    assert 291 <= most_within(pace([Pacer(both, clock=clock)], clock, 120), 60) <= 300
    clock = Clock()
    times = pace([Pacer(Rates(requests_per_second=10, requests_per_minute=6000), clock=clock)], clock, 120)
    assert most_within(times, 1) == 10
    assert len(times) >= 0.97 * 1200


def test_without_a_limit_nothing_waits(tmp_path: Path) -> None:
    pacer = Pacer(Rates(), tmp_path / "deep" / "limits.json")
    assert [pacer.reserve(10**9) for _ in range(100)] == [(0.0, 0.0)] * 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("runs", [2, 3])
def test_runs_on_one_file_share_a_limit(tmp_path: Path, runs: int) -> None:
    clock = Clock()
    path = shared_path(tmp_path, "http://h/v1", "key")
    pacers = [Pacer(Rates(requests_per_minute=300), path, clock=clock) for _ in range(runs)]
    times = pace(pacers, clock, 90)
    assert 0.97 * 300 <= most_within(times, 60) <= 300


def test_a_process_that_comes_back_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    clock = Clock()
    times: list[float] = []
    for _ in range(30):  # killed and resumed at once
        pacer = Pacer(Rates(requests_per_minute=120), tmp_path / "limits.json", clock=clock)
        times += pace([pacer], clock, 3)
    assert 0.97 * 120 <= most_within(times, 60) <= 120


def test_other_endpoints_and_keys_have_files_of_their_own(tmp_path: Path) -> None:
    paths = {shared_path(tmp_path, url, key) for url in ("http://a/v1", "http://b/v1") for key in ("k", "l")}
    assert len(paths) == 4
    clock = Clock()
    for path in paths:
        assert Pacer(Rates(requests_per_minute=1), path, clock=clock).reserve(1) == (START, 0.0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = " ".join(f"{path.name} {path.read_text()}" for path in paths)
    assert "http" not in shown


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b"{",
        b'{"requests": ',
        b"[1]",
        b"7",
        b"\0" * 100,
        b"\xff\xfe\x00{",
        state(requests=None),
        state(requests="NaN"),
        state(requests=float("nan")),
        state(requests=float("-inf")),
        state(requests=-1),
        state(requests=10**400),
        state(tokens=float("inf")),
        state(mean=float("nan")),
        state(mean=-5),
        state(used=[]),
        state(used=None),
        state(used={"soon": 5}),
        state(used={str(int(START)): float("nan")}),
        state(used={str(int(START)): -1e9}),
        state(used={str(int(START)): 10**400}),
        b'{"requests": 0, "tokens": 0, "used": {}}',
    ],
)
def test_a_file_that_a_crash_tore_starts_anew(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "limits.json"
    path.write_bytes(torn)
    clock = Clock()
    pacer = Pacer(Rates(requests_per_minute=60, tokens_per_minute=60_000), path, clock=clock)
    times = pace([pacer], clock, 120, 1000)
    assert times[0] == 0
    assert 0.95 * 60 <= most_within(times, 60) <= 60
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_file_of_another_form_is_not_taken_for_a_time_far_ahead(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    path.write_bytes(state(requests=1e300, tokens=1e300, used={"9" * 30: 1e300}))
    clock = Clock()
    times = pace([Pacer(Rates(requests_per_minute=60, tokens_per_minute=60_000), path, clock=clock)], clock, 3700, 1000)
    assert times[0] <= 3600
    assert len(times) >= 95


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"limits\.json: cannot be written \(.*\); rate limits are kept there"):
        Pacer(Rates(requests_per_minute=60), tmp_path / "file" / "limits.json")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("tokens", [10, 1000, 20_000, 50_000, 59_999])
def test_a_tokens_limit_holds_for_requests_of_any_size(tokens: int) -> None:
    clock = Clock()
    times = pace([Pacer(Rates(tokens_per_minute=60_000), clock=clock)], clock, 300, tokens)
    spent = most_within(times, 60, [tokens] * len(times))
    assert spent <= 60_000
    assert spent >= min(0.97 * 60_000, tokens * max(1, 60_000 // tokens - 1))


def test_a_request_larger_than_the_limit_waits_in_proportion() -> None:
    clock = Clock()
    times = pace([Pacer(Rates(tokens_per_minute=1000), clock=clock)], clock, 600, 3000)
    assert all(later - sooner >= 180 for sooner, later in pairwise(times))
    assert len(times) == 4


def test_requests_and_tokens_hold_together() -> None:
    clock = Clock()
    pacer = Pacer(Rates(requests_per_second=10, tokens_per_minute=600_000), clock=clock)
    assert pacer.reserve(5000)[0]  # takes up half a second of tokens; small ones behind it may not bunch up
    times = pace([pacer], clock, 60, tokens=1)
    assert most_within(times, 1) <= 10


Draw = Callable[[random.Random], float]
LATENCIES: dict[str, Draw] = {
    "a tenth of a second": lambda rng: 0.1,
    "five seconds": lambda rng: 5.0,
    "forty seconds": lambda rng: 40.0,
    "longer than the window": lambda rng: 75.0,
    "log-normal": lambda rng: rng.lognormvariate(0, 1.28),
    "mostly fast, some very slow": lambda rng: rng.choice([0.2] * 9 + [50.0]),
}
ANSWERS: dict[str, Draw] = {
    "all that they may": lambda rng: 3600,
    "anything": lambda rng: rng.randint(100, 3600),
    "an eighth": lambda rng: rng.randint(200, 700),
    "first short, then long": lambda rng: 200 if rng.random() < 0.5 else 3600,
}


class Traffic:
    """A simulated teacher behind a pacer: ``WORST`` tokens reserved for each request, an answer's own given back."""

    WORST = 3600

    def __init__(self, pacers: list[Pacer], clock: Clock, latency: Draw, answer: Draw, *, slots: int = 10**6) -> None:
        self.sent: list[tuple[float, int]] = []  # when, and what it took
        self._pacers = pacers
        self._clock = clock
        self._latency = latency
        self._answer = answer
        self._slots = slots
        self._rng = random.Random(7)
        self._back: list[tuple[float, int, float, int]] = []  # when, pacer, sent at, tokens

    def run(self, seconds: float) -> None:
        """Send whatever may be sent for so long."""
        clock, end = self._clock, self._clock.now + seconds
        number = 0
        while clock.now < end:
            while self._back and self._back[0][0] <= clock.now:
                _, pacer, at, actual = heapq.heappop(self._back)
                self._pacers[pacer].refund(at, self.WORST, actual)
            waits = []
            for _ in self._pacers:
                number = (number + 1) % len(self._pacers)
                at, wait = (None, 1e9) if len(self._back) >= self._slots else self._pacers[number].reserve(self.WORST)
                if at is None:
                    waits.append(wait)
                    continue
                actual = int(self._answer(self._rng))
                self.sent.append((at, actual))
                heapq.heappush(self._back, (at + self._latency(self._rng), number, at, actual))
            if len(waits) == len(self._pacers):
                clock.now = min([clock.now + max(0.001, min(waits)), *(back[0] for back in self._back[:1])])

    def most(self) -> int:
        """Return the most tokens that a window of a minute took."""
        self.sent.sort()
        return most_within([at for at, _ in self.sent], 60, [actual for _, actual in self.sent])

    def used(self, start: float, stop: float) -> float:
        """Return the tokens per minute of what was sent between two times, in seconds since ``START``."""
        return sum(took for at, took in self.sent if start <= at - START < stop) / (stop - start) * 60


@pytest.mark.parametrize("limit", [60_000, 600_000])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("latency", LATENCIES)
def test_no_minute_takes_more_tokens_than_the_limit(latency: str, answer: str, limit: int) -> None:
    clock = Clock()
    pacer = Pacer(Rates(tokens_per_minute=limit), clock=clock)
    traffic = Traffic([pacer], clock, LATENCIES[latency], ANSWERS[answer])
    traffic.run(300)
    assert traffic.most() <= limit
    assert len(traffic.sent) >= 0.9 * 5 * (limit // Traffic.WORST), "no fewer than if each took all that it may"
    if answer == "all that they may" and limit == 600_000:
        assert traffic.used(60, 300) >= 0.95 * limit


def test_answers_that_come_at_once_use_nearly_all_of_the_limit() -> None:
    """They take an eighth of what is reserved for them, which is given back at once."""
    clock = Clock()
    limit = 600_000
    traffic = Traffic(
        [Pacer(Rates(tokens_per_minute=limit), clock=clock)], clock, lambda rng: 0.1, ANSWERS["an eighth"]
    )
    traffic.run(360)
    assert 0.93 * limit <= traffic.used(120, 360) <= traffic.most() <= limit


def test_few_at_once_stay_below_the_limit_too() -> None:
    clock = Clock()
    limit = 600_000
    pacer = Pacer(Rates(tokens_per_minute=limit), clock=clock)
    traffic = Traffic([pacer], clock, LATENCIES["log-normal"], ANSWERS["anything"], slots=32)
    traffic.run(300)
    assert 0.8 * limit <= traffic.used(60, 300) <= traffic.most() <= limit


def test_answers_that_grow_do_not_exceed_the_limit() -> None:
    """The mean is still that of short answers when the long ones come."""
    clock = Clock()
    limit = 600_000
    traffic = Traffic(
        [Pacer(Rates(tokens_per_minute=limit), clock=clock)],
        clock,
        lambda rng: 2.0,
        lambda rng: 100 if clock.now < START + 120 else 3600,
    )
    traffic.run(360)
    assert traffic.most() <= limit
    assert traffic.used(240, 360) >= 0.93 * limit


def test_a_teacher_that_stalls_gets_no_more_than_the_limit_when_it_is_back() -> None:
    clock = Clock()
    limit = 60_000

    def latency(rng: random.Random) -> float:
        return max(1.0, START + 200 - clock.now) if START + 140 < clock.now < START + 200 else 1.0

    traffic = Traffic([Pacer(Rates(tokens_per_minute=limit), clock=clock)], clock, latency, ANSWERS["an eighth"])
    traffic.run(360)
    assert traffic.most() <= limit


@pytest.mark.parametrize("runs", [2, 3])
def test_runs_on_one_file_share_the_tokens(tmp_path: Path, runs: int) -> None:
    clock = Clock()
    limit = 60_000
    path = tmp_path / "limits.json"
    pacers = [Pacer(Rates(tokens_per_minute=limit), path, clock=clock) for _ in range(runs)]
    traffic = Traffic(pacers, clock, LATENCIES["log-normal"], ANSWERS["anything"])
    traffic.run(240)
    assert 0.7 * limit <= traffic.used(60, 240) <= traffic.most() <= limit


def test_what_a_killed_run_had_under_way_counts_in_full(tmp_path: Path) -> None:
    clock = Clock()
    rates = Rates(tokens_per_minute=36_540)  # ten requests, with the margin
    path = tmp_path / "limits.json"
    assert len(pace([Pacer(rates, path, clock=clock)], clock, 59, 3600)) == 10
    resumed = pace([Pacer(rates, path, clock=clock)], clock, 2, 3600)
    assert resumed == [pytest.approx(61, abs=0.6)], "when the first has left the window"


def test_what_is_under_way_counts_with_all_that_it_may_take() -> None:
    """The mean would let many more go: what keeps them back is that none of these is back."""
    clock = Clock()
    pacer = Pacer(Rates(tokens_per_minute=36_540), clock=clock)
    at, _ = pacer.reserve(3600)
    assert at == START
    pacer.refund(at, 3600, 36)
    clock.now += 62
    times = pace([pacer], clock, 1, 3600)
    assert len(times) == 10
    clock.now = START + 70
    assert pacer.reserve(3600)[0] is None
    for at in times:
        pacer.refund(START + at, 3600, 36)
    assert len(pace([pacer], clock, 5, 3600)) == 9, "beside what those ten took"


def test_a_place_that_was_given_back_counts_for_nothing() -> None:
    clock = Clock()
    pacer = Pacer(Rates(tokens_per_minute=609), clock=clock)
    at, _ = pacer.reserve(300)
    assert at == START
    pacer.refund(at, 300, 300)
    clock.now += 30
    second, _ = pacer.reserve(300)
    assert second == START + 30
    clock.now += 30
    assert pacer.reserve(300) == (None, pytest.approx(1.0)), "both are within the minute"
    pacer.refund(second, 300, 0)
    assert pacer.reserve(300) == (START + 60, 0.0)
    clock.now += 29
    assert pacer.reserve(300) == (None, pytest.approx(0.5)), "nor in the mean: half of the limit each half minute"
    clock.now += 1
    assert pacer.reserve(300) == (START + 90, 0.0)


def test_a_refund_without_a_reservation_or_limit_is_nothing(tmp_path: Path) -> None:
    clock = Clock()
    pacer = Pacer(Rates(tokens_per_minute=609), clock=clock)
    pacer.refund(0.0, 600, 0)
    pacer.refund(START - 500, 600, 0)
    assert pacer.reserve(600)[0] == START
    clock.now += 59.9
    pacer.refund(START + 20, 600, 0)
    assert pacer.reserve(600)[0] is None
    path = tmp_path / "limits.json"
    requests = Pacer(Rates(requests_per_minute=1), path, clock=clock)
    before = path.read_text()
    requests.refund(START, 100, 0)
    assert path.read_text() == before


@pytest.mark.parametrize("back", [0.3, 5, 30, 90, 1800, 3600, 86_400, 10**9])
def test_a_clock_that_is_set_back_stops_a_run_for_an_hour_at_most(tmp_path: Path, back: float) -> None:
    clock = Clock()
    limit = 180_000
    path = tmp_path / "limits.json"
    pacer = Pacer(Rates(requests_per_minute=100, tokens_per_minute=limit), path, clock=clock)
    before = Traffic([pacer], clock, lambda rng: 1.0, ANSWERS["all that they may"])
    before.run(90)
    moment = clock.now
    clock.now -= back
    resumed = clock.now
    after = Traffic([pacer], clock, lambda rng: 1.0, ANSWERS["all that they may"])
    after.run(min(back, 3600) + 120)
    stopped = min(at for at, _ in after.sent) - resumed
    assert stopped <= min(back, 3600) + 1.5
    true = [(at + moment - resumed, took) for at, took in after.sent]  # by a clock that nobody set
    before.sent += true
    assert before.most() <= limit
    assert after.used(resumed - START + stopped + 60, clock.now - START) >= 0.95 * limit


def test_a_clock_that_is_set_forward_stops_nothing() -> None:
    clock = Clock()
    pacer = Pacer(Rates(requests_per_minute=60, tokens_per_minute=60_900), clock=clock)
    assert len(pace([pacer], clock, 60, 1000)) >= 58
    clock.now += 86_400
    assert pacer.reserve(1000) == (clock.now, 0.0)
    assert pacer.reserve(1000)[0] is None
