from __future__ import annotations

import pytest

from alpaca_ray.generate.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tripped(clock: Clock, retry_after: float | None = None) -> tuple[Breaker, float]:
    breaker = Breaker(clock=clock)
    pauses = [breaker.rate_limited(retry_after) for _ in range(10)]
    assert pauses[:9] == [None] * 9
    assert pauses[9] is not None
    return breaker, pauses[9]


def test_a_few_rate_limits_stop_nobody() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(20):  # an answer between them: the endpoint works
        assert [breaker.rate_limited(None) for _ in range(9)] == [None] * 9
        assert breaker.wait(5) == 0
        breaker.answered()
    assert not breaker.open


def test_a_run_of_rate_limits_pauses_the_endpoint() -> None:
    clock = Clock()
    breaker, pause = tripped(clock)
    assert breaker.open
    assert breaker.wait(0) == breaker.wait(32) == pause > 0
    clock.now += pause - 0.5
    assert breaker.wait(0) == pytest.approx(0.5)


def test_after_the_pause_one_request_tries() -> None:
    clock = Clock()
    breaker, pause = tripped(clock)
    clock.now += pause
    assert breaker.wait(0) == 0
    assert breaker.wait(1) == float("inf"), "until the one that tries is back"
    breaker.answered()
    assert not breaker.open
    assert breaker.wait(32) == 0


def test_pauses_grow_up_to_a_limit_and_start_anew_after_an_answer() -> None:
    clock = Clock()
    breaker, first = tripped(clock)
    pauses = [first]
    for _ in range(10):
        clock.now += pauses[-1]
        pause = breaker.rate_limited(None)
        assert pause is not None
        pauses.append(pause)
    assert pauses[:4] == [first, 2 * first, 4 * first, 8 * first]
    assert pauses[-1] == pauses[-2] == 120
    clock.now += pauses[-1]
    breaker.answered()
    assert [breaker.rate_limited(None) for _ in range(10)][-1] == first


def test_the_pause_is_no_shorter_than_the_endpoint_asks() -> None:
    clock = Clock()
    assert tripped(clock, 37.0)[1] == 37
    breaker, pause = tripped(clock, 0.1)
    assert pause > 0.1
    # Of requests that were under way: they begin no pause of their own, but may prolong the one there is.
    assert breaker.rate_limited(50.0) is None
    assert breaker.wait(0) == 50
    assert breaker.rate_limited(None) is None
    assert breaker.wait(0) == 50


def test_stragglers_do_not_make_the_pause_longer_each() -> None:
    clock = Clock()
    breaker, pause = tripped(clock)
    assert [breaker.rate_limited(None) for _ in range(500)] == [None] * 500
    assert breaker.wait(0) == pause


def test_an_endpoint_that_answers_during_a_pause_is_watched_anew() -> None:
    clock = Clock()
    breaker, _ = tripped(clock, 600.0)
    breaker.answered()
    assert breaker.wait(3) == 0
    assert [breaker.rate_limited(None) for _ in range(10)][-1] is not None
    assert breaker.wait(0) > 0
