"""How a step's samples are divided: exact at the start, kept when workers come and go."""

from __future__ import annotations

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.settings.workers import parse_workers, worker_range
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.split import Split, passes, split_batch


def split(*flags: str, begun_with: int | None = None) -> Split:
    settings = parse_settings(TrainSettings, list(flags), description="test")
    return split_batch(settings, begun_with=begun_with, may_be_uneven=begun_with is not None)


@pytest.mark.parametrize(
    ("flags", "begun_with", "expected"),
    [
        (["--batch_size", "7", "--num_workers", "2"], 7, Split(7, 4, 1)),
        (["--batch_size", "8", "--micro_batch_size", "2", "--num_workers", "3"], 8, Split(8, 2, 2)),
        # Stanford's way to say it, where the batch would follow the number of workers.
        (["--micro_batch_size", "2", "--gradient_accumulation_steps", "3", "--num_workers", "1"], 12, Split(12, 2, 6)),
        (["--micro_batch_size", "2", "--gradient_accumulation_steps", "3", "--num_workers", "4"], 12, Split(12, 2, 2)),
        # No number of workers makes 12 of this: another run, which the identity refuses.
        (["--micro_batch_size", "5", "--num_workers", "2"], 12, Split(10, 5, 1)),
        (["--base_model", "m", "--num_workers", "3"], 128, Split(128, 4, 11)),
        (["--batch_size", "4", "--num_workers", "2:8"], None, Split(4, 1, 1)),
        (["--micro_batch_size", "2", "--num_workers", "2:8"], None, Split(16, 2, 1)),
    ],
)
def test_a_run_that_goes_on_keeps_the_samples_of_a_step(
    flags: list[str], begun_with: int | None, expected: Split
) -> None:
    assert split(*flags, begun_with=begun_with) == expected


def test_a_run_that_begins_must_divide() -> None:
    with pytest.raises(SettingsError, match="cannot be split"):
        split("--base_model", "m", "--num_workers", "3")


def test_passes_cover_the_step() -> None:
    assert [passes(8, 2, workers) for workers in (1, 2, 3, 4, 8)] == [4, 2, 2, 1, 1]


def test_the_plan_says_how_many_workers_and_that_the_split_is_uneven() -> None:
    settings = parse_settings(TrainSettings, ["--num_workers", "2:3", "--batch_size", "8"], description="test")
    plan = make_plan(settings, has_gpus=False)
    assert (plan.least_workers, plan.workers, plan.step_samples) == (2, 3, 8)
    text = "\n".join(plan.lines())
    assert "runs on: 2 to 3 CPU workers" in text
    assert "batch: 8 samples a step (at most 3 x 1 x 3 workers, unevenly)" in text


def test_workers_are_a_number_or_a_range() -> None:
    assert [parse_workers(value) for value in ("2:8", 3, "4:4", " 1 ")] == ["2:8", 3, 4, 1]
    assert [worker_range(value) for value in ("2:8", 3)] == [(2, 8), (3, 3)]
    for value, part in {"0": "at least one", "8:2": "MIN is above MAX", "2:": "MIN:MAX", "two": "MIN:MAX"}.items():
        with pytest.raises(ValueError, match=part):
            parse_workers(value)
