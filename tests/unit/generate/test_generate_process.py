from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.generate.answers import AnswerReader
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.process import Processor, Step
from alpaca_ray.generate.store import RowStore
from alpaca_ray.novelty.filter import Decision, NoveltyFilter
from alpaca_ray.novelty.rejected import REASONS
from alpaca_ray.records import read_seed_tasks
from alpaca_ray.settings.filters import FilterSettings
from alpaca_ray.testing.supply import Faults, draw_tasks, numbered

SEEDS = read_seed_tasks("seeds")


def outcomes(count: int) -> list[Outcome]:
    return [
        Outcome(
            number,
            [],
            "",
            "m",
            numbered(draw_tasks(f"1:prompt {number}", 1, 6, Faults()), 4),
            random.Random(number).choice(["stop", "length"]),
        )
        for number in range(count)
    ]


def stored(rows: list[dict[str, str]]) -> RowStore:
    store = RowStore(Path(tempfile.gettempdir()))
    for row in rows:
        store.append(row)
    return store


def make(target: int, initial: list[dict[str, str]] | None = None, **given: Any) -> Any:
    known = [task["instruction"] for task in [*SEEDS, *(initial or [])]]
    return Processor(
        **{
            "records": list(initial or []),
            "rejected": [],
            "target": target,
            "reader": AnswerReader(FilterSettings(), first_number=4),
            "novelty": NoveltyFilter(known, workers=1),
            **given,
        }
    )


def run(target: int, given: list[Outcome], initial: list[dict[str, str]] | None = None) -> Any:
    processor = make(target, initial)
    for found in given:
        processor.offer([found])
        processor.process()
    return processor


def test_the_order_of_arrival_changes_nothing() -> None:
    answers = outcomes(25)
    shuffled = random.Random(3).sample(answers, len(answers))
    first, second = run(60, answers), run(60, shuffled)
    assert list(first.records) == list(second.records)
    assert list(first.rejected) == list(second.rejected)
    assert len(list(first.records)) == 60


def test_entries_attempted_are_kept_plus_rejected() -> None:
    processor = run(10_000, outcomes(40))
    counts = processor.counts()
    assert counts["entries"] == 240 == counts["kept"] + sum(counts["rejected"].values())
    assert {"truncated", "unparsable", "too_short", "blacklisted_word", "empty_output", "too_similar"} == set(
        counts["rejected"]
    )
    assert sum(counts["rejected"].values()) == len(list(processor.rejected))


def test_it_stops_at_the_very_entry() -> None:
    answers = outcomes(25)
    whole = run(10_000, answers)
    part = run(17, answers)
    assert list(part.records) == whole.records[:17]
    assert list(part.rejected) == whole.rejected[: len(list(part.rejected))]
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
    processor.process()
    assert processor.next_id == 4


@pytest.mark.parametrize("most", [1, 3, 256])
def test_steps_are_the_same_however_many_go_at_once(most: int) -> None:
    answers = outcomes(10)
    one_by_one = run(10_000, answers)
    processor = make(10_000)
    processor.offer(answers)
    steps = []
    while processor.next_outcome() is not None:
        found = list(processor.steps(most))
        assert len(found) == min(most, 10 - len(steps))
        steps += found
    assert [outcome for outcome, _ in steps] == answers
    assert sum(step.kept for _, step in steps) == len(processor.records) > 0
    assert list(processor.steps()) == []
    assert (processor.records, processor.rejected) == (one_by_one.records, one_by_one.rejected)


def test_what_is_beyond_the_target_is_not_processed() -> None:
    answers = outcomes(25)
    processor = make(17)
    processor.offer(answers)
    assert processor.ready == 25
    steps = list(processor.steps())
    assert processor.done
    assert 0 < len(steps) < 25
    assert [outcome.request_id for outcome, _ in steps] == list(range(processor.next_id))
    assert processor.ready == 25 - processor.next_id, "it stays where it was"
    assert processor.next_outcome() is None
    assert processor.records == run(17, answers).records
    assert processor.rejected == run(17, answers).rejected
    assert list(processor.steps()) == []
    assert processor.records_before(processor.next_id) == 17
    processor.offer(answers[:2])
    assert processor.ready == 25 - processor.next_id, "what has been processed is not taken again"


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
    assert len(list(processor.records)) == 8
    assert processor.kept == 7
    assert processor.rejected[0]["reason"] == "too_similar"
    assert processor.rejected[0]["most_similar"] == initial[0]["instruction"]
    assert processor.rejected[0]["score"] == 1.0


def test_the_pool_as_it_was_before_a_request_is_known() -> None:
    answers = outcomes(12)
    processor = run(10_000, answers)
    for number in range(13):
        assert processor.records_before(number) == len(run(10_000, answers[:number]).records)
    with pytest.raises(IndexError):
        processor.records_before(13)
    assert make(5, [{"instruction": "An earlier record."}]).records_before(0) == 1


def test_what_is_near_an_evaluation_set_never_joins_the_pool() -> None:
    class Check:
        def nearest(self, instruction: str, input: str, /) -> tuple[str, float] | None:
            near = instruction in (tasks[0], tasks[3]) and input == "x"
            return ("an evaluation prompt", 0.9) if near else None

    def answer_of(*tasks: str) -> str:
        blocks = [f"{n}. Instruction: {t}\n{n}. Input:\nx\n{n}. Output:\ny\n" for n, t in enumerate(tasks, start=4)]
        return "###\n".join(blocks).removeprefix("4. Instruction:")

    # The first would be too similar to a seed task: it must not even be asked about.
    tasks = (SEEDS[0]["instruction"], "Draw it", "Explain how honey is made by bees.", "Which river is it?")
    processor = make(100, decontaminator=Check())
    processor.offer([Outcome(0, [], "", "m", answer_of(*tasks), "stop")])
    assert [step for _, step in processor.steps()] == [Step(generated=3, kept=1)]
    assert [record["instruction"] for record in processor.records] == [tasks[2]]
    assert [(row["reason"], row["entry"]) for row in processor.rejected] == [
        ("contaminated", 0),
        ("too_short", 1),
        ("contaminated", 3),
    ]
    assert processor.rejected[0]["most_similar"] == "an evaluation prompt"
    assert processor.rejected[0]["score"] == 0.9
    counts = processor.counts()
    assert counts["entries"] == 4 == counts["kept"] + sum(counts["rejected"].values())


def test_statistics_that_were_not_taken_are_not_written() -> None:
    class Novelty:
        def __init__(self, average: float | None) -> None:
            self.average = average

        def decide(self, candidates: Any, /) -> Any:
            return [Decision(True, {"near": 0.5} if self.average else {}, self.average) for _ in candidates]

    answers = [Outcome(0, [], "", "m", " Name a river of Peru.\n4. Input:\n\n4. Output:\nUcayali", "stop")]
    for average, names in ((0.1, {"most_similar_instructions", "avg_similarity_score"}), (None, set())):
        processor = make(5, novelty=Novelty(average))
        processor.offer(answers)
        processor.process()
        assert processor.records[0].keys() == {"instruction", "input", "output"} | names


def test_rejected_rows_have_one_schema() -> None:
    rows = run(10_000, outcomes(40)).rejected
    assert len({tuple(row) for row in rows}) == 1
    assert {row["reason"] for row in rows} <= set(REASONS)
    for row in rows:
        assert (row["score"] is not None) == (row["reason"] == "too_similar")
        assert bool(row["text"]) == (row["reason"] in ("truncated", "unparsable"))
