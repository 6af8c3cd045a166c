from __future__ import annotations

from typing import Any

import pytest

from alpaca_ray.generate.account import Pace, Progress, Status, Tally, duration
from alpaca_ray.generate.budget import Price, Tokens
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.process import Step


def outcome(number: int, **given: Any) -> Outcome:
    return Outcome(number, [], "", "m", **given)


def test_a_tally_counts_every_attempt_and_token() -> None:
    tally = Tally()
    tally.add(
        [
            outcome(0, text="x", usage={"prompt_tokens": 5, "completion_tokens": 7}, failures={"rate_limit": 3}),
            outcome(1, error="timeout", message="no answer in time", failures={"timeout": 9, "rate_limit": 1}),
            outcome(2, text="x", estimated={"prompt_tokens": 10, "completion_tokens": 20}),
        ]
    )
    assert tally.metrics() == {
        "requests": 3,
        "failed": 1,
        "tokens": {"prompt": 5, "completion": 7, "estimated": 30},
        "errors": {"rate_limit": 4, "timeout": 9},
    }


def test_failures_in_a_row_end_with_an_answer() -> None:
    tally = Tally()
    tally.add([outcome(number, error="refusal", message="no") for number in range(3)])
    assert (tally.failed_in_a_row, tally.last_error) == (3, "refusal: no")
    tally.add([outcome(3, text="x")])
    assert (tally.failed_in_a_row, tally.failed) == (0, 3)


def test_progress_lines_are_the_originals() -> None:
    lines: list[str] = []
    progress = Progress(2, lines.append, done=4)
    progress.add(outcome(0, seconds=2.0), Step(generated=17, kept=9), 0.5)
    assert lines == []
    progress.add(outcome(1, seconds=1.0), Step(generated=3, kept=1), 0.25)
    assert lines == ["Request 5 took 2.00s, processing took 0.75s\nGenerated 20 instructions, kept 10 instructions"]
    progress.flush()
    assert len(lines) == 1
    progress.add(outcome(2, seconds=3.0), Step(generated=1, kept=0), 0.0)
    progress.flush()
    assert lines[1:] == ["Request 6 took 3.00s, processing took 0.00s\nGenerated 1 instructions, kept 0 instructions"]


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def status(lines: list[str], clock: Clock, **given: Any) -> Status:
    return Status(
        lines.append,
        clock=clock,
        **{"target": 1000, "kept": 100, "price": None, "max_cost": None, "every": 15, **given},
    )


def test_a_status_line_comes_from_time_to_time() -> None:
    lines: list[str] = []
    clock = Clock()
    found = status(lines, clock)
    for _ in range(61):
        found.note(kept=100, requests=3, under_way=2, spent=Tokens(1000, 234))
        clock.now += 1
    assert lines == ["progress: 100 of 1000 instructions, 3 requests (2 under way), 1,234 tokens"] * 4


def test_a_status_line_tells_cost_and_time_to_go() -> None:
    lines: list[str] = []
    clock = Clock()
    found = status(lines, clock, price=Price(1.0, 10.0), max_cost=2.5)
    clock.now += 60
    found.note(kept=400, requests=30, under_way=8, spent=Tokens(100_000, 50_000))
    assert lines == [
        "progress: 400 of 1000 instructions, 30 requests (8 under way), 150,000 tokens, 0.60 of 2.50 US dollars, "
        "about 2 min to go"
    ]
    status(lines, clock, price=Price(1.0, 10.0), every=0).note(kept=100, requests=0, under_way=0, spent=Tokens())
    assert lines[-1].endswith("0 tokens, 0.00 US dollars"), "nothing has been kept since the start"


def test_a_status_line_tells_what_went_wrong_since_the_last_one() -> None:
    lines: list[str] = []
    clock = Clock()
    found = status(lines, clock)
    for failures in (0, 3, 3, 4):
        clock.now += 20
        found.note(kept=1, requests=1, under_way=1, spent=Tokens(), failures=failures, trouble="timeout: no answer")
    ends = [line.partition("tokens")[2] for line in lines]
    assert ends == [
        "",
        ", 3 attempts failed since the last line (timeout: no answer)",
        "",
        ", 1 attempt failed since the last line (timeout: no answer)",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (60 * 89, "89 min"), (60 * 90, "1 h 30 min"), (12_000, "3 h 20 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_no_more_requests_than_the_yield_asks_for() -> None:
    pace = Pace(expected=8.0)
    assert [pace.needed(missing) for missing in (0, 1, 8, 9)] == [0, 1, 1, 2]
    for _ in range(99):
        pace.add(2)
    assert pace.needed(100) == 49  # (8 + 198) / 100 a request
    pace = Pace(expected=8.0)
    pace.add(0, requests=10_000)
    assert pace.needed(1) <= 10_001, "a teacher that has brought little is not asked for ever more at once"
