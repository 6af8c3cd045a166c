from __future__ import annotations

import random

from alpaca_ray.generate.account import Pace, Progress, Tally, Waiting
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.process import Processor, Step
from alpaca_ray.generate.run import shown
from alpaca_ray.novelty.rejected import REASONS
from alpaca_ray.records import read_seed_tasks
from alpaca_ray.testing.supply import Faults, answer

SEEDS = read_seed_tasks("seeds")


def outcomes(count: int) -> list[Outcome]:
    return [
        Outcome(
            number,
            [],
            "",
            "m",
            answer(f"prompt {number}", seed=1, first_number=4, tasks=6, faults=Faults()),
            random.Random(number).choice(["stop", "length"]),
        )
        for number in range(count)
    ]


def run(target: int, given: list[Outcome], initial: list[dict[str, str]] | None = None) -> Processor:
    processor = Processor(seeds=SEEDS, initial=initial or [], target=target, first_number=4, threshold=0.7, workers=1)
    for found in given:
        processor.offer([found])
        while processor.next_outcome() is not None:
            processor.step()
    return processor


def test_the_order_of_arrival_changes_nothing() -> None:
    answers = outcomes(25)
    shuffled = random.Random(3).sample(answers, len(answers))
    first, second = run(60, answers), run(60, shuffled)
    assert first.records == second.records
    assert first.rejected == second.rejected
    assert len(first.records) == 60


def test_entries_attempted_are_kept_plus_rejected() -> None:
    processor = run(10_000, outcomes(40))
    counts = processor.counts()
    assert counts["entries"] == 240 == counts["kept"] + sum(counts["rejected"].values())
    assert {"truncated", "unparsable", "too_short", "blacklisted_word", "empty_output", "too_similar"} == set(
        counts["rejected"]
    )
    assert sum(counts["rejected"].values()) == len(processor.rejected)


def test_it_stops_at_the_very_entry() -> None:
    answers = outcomes(25)
    whole = run(10_000, answers)
    part = run(17, answers)
    assert part.records == whole.records[:17]
    assert part.rejected == whole.rejected[: len(part.rejected)]
    assert part.next_outcome() is None
    assert part.done
    assert part.missing == 0


def test_a_higher_target_extends_the_same_records() -> None:
    answers = outcomes(25)
    assert run(40, answers).records[:17] == run(17, answers).records


def test_a_missing_outcome_holds_back_the_later_ones() -> None:
    answers = outcomes(4)
    processor = run(100, [answers[0], answers[2], answers[3]])
    assert processor.next_id == 1
    processor.offer([answers[1]])
    while processor.next_outcome() is not None:
        processor.step()
    assert processor.next_id == 4


def test_a_failed_request_brings_nothing_and_blocks_nothing() -> None:
    answers = outcomes(3)
    answers[1] = Outcome(1, [], "", "m", error="timeout", message="no answer in time")
    processor = run(100, answers)
    assert processor.next_id == 3
    assert {row["request_id"] for row in processor.rejected} <= {0, 2}


def test_earlier_records_count_and_stay_as_they_are() -> None:
    initial = [{"instruction": "Describe a lighthouse keeper's day.", "input": "", "output": "x", "mine": "kept"}]
    answers = [
        Outcome(
            0, [], "", "m", " Describe a lighthouse keeper's day.\n4. Input:\n<noinput>\n4. Output:\nHe wakes.", "stop"
        ),
        *[Outcome(found.request_id + 1, [], "", "m", found.text, "stop") for found in outcomes(3)],
    ]
    processor = run(8, answers, initial)
    assert processor.records[0] == initial[0]
    assert len(processor.records) == 8
    assert processor.kept == 7
    assert processor.rejected[0]["reason"] == "too_similar"
    assert processor.rejected[0]["most_similar"] == initial[0]["instruction"]
    assert processor.rejected[0]["score"] == 1.0


def test_rejected_rows_have_one_schema() -> None:
    rows = run(10_000, outcomes(40)).rejected
    assert len({tuple(row) for row in rows}) == 1
    assert {row["reason"] for row in rows} <= set(REASONS)
    for row in rows:
        assert (row["score"] is not None) == (row["reason"] == "too_similar")
        assert bool(row["text"]) == (row["reason"] in ("truncated", "unparsable"))


def test_progress_lines_keep_the_originals_words() -> None:
    lines: list[str] = []
    progress = Progress(2, lines.append)
    for number, (seconds, step) in enumerate([(1.0, Step(5, 4)), (2.5, Step(3, 0)), (0.5, Step(1, 1))]):
        progress.add(Outcome(number, [], "", "m", "x", seconds=seconds), step, 0.25)
    progress.flush()
    progress.flush()
    assert lines == [
        "Request 1 took 2.50s, processing took 0.50s\nGenerated 8 instructions, kept 4 instructions",
        "Request 2 took 0.50s, processing took 0.25s\nGenerated 1 instructions, kept 1 instructions",
    ]


def test_tally_counts_attempts_and_tokens() -> None:
    tally = Tally()
    tally.add(
        [Outcome(0, [], "", "m", "x", usage={"prompt_tokens": 5, "completion_tokens": 2}, failures={"timeout": 2})]
    )
    tally.add([Outcome(1, [], "", "m", error="timeout", message="no answer in time", failures={"timeout": 9})])
    assert tally.metrics() == {
        "requests": 2,
        "failed": 1,
        "tokens": {"prompt": 5, "completion": 2},
        "errors": {"timeout": 11},
    }
    assert tally.failed_in_a_row == 1


def test_pace_follows_the_measured_yield() -> None:
    pace = Pace(expected=8.0)
    assert pace.needed(0) == 0
    assert pace.needed(1) == 1
    assert pace.needed(80) == 10
    for _ in range(99):
        pace.add(0)
    assert pace.needed(1) == 13
    for _ in range(1000):
        pace.add(0)
    assert pace.needed(1) > 100, "a yield of nothing must not stop the run before its limit does"


def test_a_wait_without_answers_is_told_every_15_seconds() -> None:
    lines: list[str] = []
    clock = [0.0]
    waiting = Waiting(lines.append, clock=lambda: clock[0])
    for clock[0], new, answers in [(5, 0, 0), (14.9, 0, 0), (15, 0, 0), (29, 0, 0), (30, 0, 0), (44, 1, 1), (58, 0, 1)]:
        waiting.note(new=new, under_way=8, answers=answers)
    assert lines == ["waiting: 8 requests under way, 0 answers so far"] * 2
    clock[0] = 59
    waiting.note(new=0, under_way=7, answers=1)
    assert lines[2:] == ["waiting: 7 requests under way, 1 answers so far"]


def test_no_rejection_is_told_as_none() -> None:
    assert shown({}) == "none"
    assert shown({"too_short": 2, "truncated": 1}) == "too_short 2, truncated 1"
