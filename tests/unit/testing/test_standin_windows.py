"""The stand-in's own measures: what it counts must be right, since tests and benchmarks go by it."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.testing.arrivals import Arrivals
from alpaca_ray.testing.quota import Quota, Window, retry_header
from alpaca_ray.testing.stand_in import StandIn
from alpaca_ray.testing.supply import Faults, draw_tasks


def test_arrivals_in_the_fullest_window() -> None:
    clock = [0.0]
    arrivals = Arrivals(clock=lambda: clock[0])
    for clock[0] in (0.0, 30.0, 59.9, 60.0, 60.1, 61.0, 125.0):
        arrivals.arrive()
    assert arrivals.most_within(60.0) == 5, "from 30 to 61"
    assert arrivals.most_within(0.1) == 1, "59.9 and 60.0 are 0.1 apart: the right end is open"
    assert arrivals.most_within(1.0) == 3
    assert arrivals.per_minute() == [3, 3, 1]
    assert len(arrivals) == 7


def test_fullest_window_equals_a_count_by_hand() -> None:
    rng = random.Random(4)
    for _ in range(20):
        times = sorted(round(rng.uniform(0, 200), 1) for _ in range(80))
        clock = [0.0]
        arrivals = Arrivals(clock=lambda clock=clock: clock[0])  # type: ignore[misc]
        for clock[0] in times:
            arrivals.arrive()
        assert arrivals.most_within(60.0) == max(sum(start <= at < start + 60 for at in times) for start in times)


def test_load_between_first_and_last_arrival() -> None:
    clock = [0.0]
    arrivals = Arrivals(clock=lambda: clock[0])
    # Under way: 1 from 0, 2 from 2, 1 from 5, 2 from 10 (the last arrival).
    for clock[0], act in ((0, "in"), (2, "in"), (5, "out"), (10, "in"), (50, "out"), (51, "out")):
        arrivals.arrive() if act == "in" else arrivals.leave()
    assert arrivals.load(at_least=2) == {
        "seconds": 10,
        "arrivals_after_skip": 3,
        "mean_in_flight": 1.3,
        "share_at_least": 0.3,
        "slots_busy": 0.65,
    }
    assert arrivals.load(at_least=2, skip=4) == {
        "seconds": 6,
        "arrivals_after_skip": 1,
        "mean_in_flight": 1.167,
        "share_at_least": 0.1667,
        "slots_busy": 0.5833,
    }
    assert (arrivals.most_at_once, arrivals.at_once) == (2, 0)


def test_nothing_has_come() -> None:
    arrivals = Arrivals()
    assert (arrivals.most_within(60), arrivals.per_minute()) == (0, [])
    assert arrivals.load(at_least=3) == {"seconds": 0.0, "arrivals_after_skip": 0, "mean_in_flight": None}


def test_a_window_never_holds_more_than_its_limit() -> None:
    rng = random.Random(1)
    window, admitted, now = Window(10, 60.0), [], 0.0
    for _ in range(2000):
        now += rng.expovariate(1.0)
        weight = rng.randint(1, 3)
        wait = window.wait(now, weight)
        if wait and rng.random() < 0.5:
            continue
        now += wait + 1e-6
        assert window.wait(now, weight) == 0, "after the wait it is told, it fits"
        window.add(now, weight)
        admitted.append((now, weight))
    for start, _ in admitted:
        assert sum(weight for at, weight in admitted if start <= at < start + 60.0) <= 10
    assert len(admitted) > 100


def test_a_window_is_open_at_its_end() -> None:
    window = Window(10, 60.0)
    window.add(0.0, 4)
    assert window.remaining(59.5) == (6, 0.5)
    assert window.wait(59.5, 7) == 0.5
    assert window.remaining(60.0) == (10, 0.0)


def test_what_is_refused_and_counted_is_a_request_and_no_answer() -> None:
    clock = [0.0]
    limits = quota(clock, requests_per_minute=1, tokens_per_minute=100, count_refused=True)
    assert [limits.admit(40, 0) is None for _ in range(3)] == [True, False, False]
    assert limits.headers()["x-ratelimit-remaining-tokens"] == "58"


def test_repetitions_come_from_one_stock_a_seed() -> None:
    only_repeats = Faults(1, 0, 0, 0, 0, 0)
    first, other_prompt, other_seed = (
        {task.instruction for task in draw_tasks(key, seed, 200, only_repeats)}
        for key, seed in (("a", 1), ("b", 1), ("a", 2))
    )
    assert first == other_prompt
    assert first != other_seed


def test_what_never_fits_waits_a_whole_window() -> None:
    assert Window(10, 60.0).wait(0.0, 11) == 60.0


def quota(clock: list[float], **given: Any) -> Quota:
    return Quota(StandIn.resolve(given), clock=lambda: clock[0])


def test_each_limit_refuses_by_name_and_tells_the_wait() -> None:
    clock = [100.0]
    limits = quota(clock, requests_per_second=2, requests_per_minute=3, tokens_per_minute=100)
    assert limits.admit(10, 0) is None
    assert limits.admit(10, 0) is None
    refusal = limits.admit(10, 0)
    assert refusal is not None
    assert "requests per second: limit 2" in refusal.message
    assert refusal.wait == 1.0
    clock[0] = 101.5
    over = limits.admit(81, 0)
    assert over is not None
    assert "tokens per minute: limit 100" in over.message
    assert over.wait == 58.5
    assert limits.admit(80, 0) is None
    clock[0] = 103.0
    third = limits.admit(0, 0)
    assert third is not None
    assert "requests per minute: limit 3" in third.message
    assert limits.headers() == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "58.500s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "58.500s",
    }


@pytest.mark.parametrize(("count_refused", "after"), [(False, True), (True, False)])
def test_refused_requests_count_only_where_that_is_set(count_refused: bool, after: bool) -> None:
    clock = [0.0]
    limits = quota(clock, requests_per_minute=2, count_refused=count_refused)
    assert [limits.admit(1, 0) is None for _ in range(2)] == [True, True]
    clock[0] = 30.0
    assert [limits.admit(1, 0) is None for _ in range(2)] == [False, False]
    clock[0] = 61.0
    assert (limits.admit(1, 0) is None) == after


def test_the_cap_on_concurrent_requests() -> None:
    limits = quota([0.0], max_concurrent=2)
    assert limits.admit(1, 1) is None
    refusal = limits.admit(1, 2)
    assert refusal is not None
    assert refusal.wait is None
    assert "at most 2 requests at once" in refusal.message


def test_forms_of_the_header() -> None:
    assert retry_header(None, "seconds") == {}
    assert retry_header(37, "seconds") == {"retry-after": "37"}
    assert retry_header(0.12345, "seconds") == {"retry-after": "0.124"}
    assert retry_header(0.1231, "ms") == {"retry-after-ms": "124"}
    date = retry_header(30.5, "date")["retry-after"]
    assert date.endswith("GMT")
    assert 30 < parsedate_to_datetime(date).timestamp() - time.time() < 32


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"latency_median": 1}, "--latency_p99 go together"),
        ({"latency_median": 2, "latency_p99": 1}, "--latency_p99 1 is below --latency_median 2"),
        ({"rate_429": 0.6, "rate_drip": 0.6}, "exceed 1 together"),
        ({"answer_tokens": [0]}, "--answer_tokens"),
        ({"answer_tokens": [5, 2]}, "--answer_tokens"),
        ({"rate_500": 1.5}, "--rate_500"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        StandIn.resolve(given)


def test_log_normal_latency_has_the_percentile_that_is_set() -> None:
    settings = StandIn.resolve({"latency_median": 1.0, "latency_p99": 20.0})
    rng = random.Random(0)
    drawn = sorted(rng.lognormvariate(0.0, settings.sigma) for _ in range(20_000))
    assert 0.97 < drawn[10_000] < 1.03
    assert 18 < drawn[19_800] < 22
