"""The validation split, and the order in which samples are seen on any number of workers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpaca_ray.errors import SettingsError
from alpaca_ray.train.data import split
from alpaca_ray.train.order import Batches, epoch_order, split_step
from alpaca_ray.train.split import passes

RECORDS = [{"id": str(number), "instruction": "i", "output": "o"} for number in range(20)]


def test_the_split_is_seeded_disjoint_and_complete() -> None:
    training, heldout = split(RECORDS, 5, seed=1)
    assert (len(training), len(heldout)) == (15, 5)
    assert {r["id"] for r in training} | {r["id"] for r in heldout} == {r["id"] for r in RECORDS}
    assert split(RECORDS, 5, seed=1) == (training, heldout)
    assert split(RECORDS, 5, seed=2)[1] != heldout


def test_a_share_holds_out_at_least_one() -> None:
    assert len(split(RECORDS, 0.1, seed=0)[1]) == 2
    assert len(split(RECORDS, 0.001, seed=0)[1]) == 1
    assert split(RECORDS, 0, seed=0) == (RECORDS, [])


@pytest.mark.parametrize("size", [20, 2000])
def test_holding_everything_out_is_an_error_that_names_the_flag(size: int) -> None:
    with pytest.raises(SettingsError, match=rf"--val_set_size {size} leaves nothing to learn of 20 records"):
        split(RECORDS, size, seed=0)


def test_copies_of_a_record_stay_on_one_side() -> None:
    twice = [*RECORDS, *RECORDS]
    training, heldout = split(twice, 10, seed=3)
    assert len(heldout) == 10
    assert not {r["id"] for r in training} & {r["id"] for r in heldout}


@given(
    count=st.integers(1, 70),
    micro=st.integers(1, 5),
    step=st.integers(1, 40),
    workers=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_each_sample_once_an_epoch_and_the_same_steps_on_any_number_of_workers(
    count: int, micro: int, step: int, workers: int, epoch: int
) -> None:
    order = epoch_order(count, epoch=epoch, seed=7)
    per_worker = []
    for rank in range(workers):
        batches = Batches(count, micro_batch=micro, step=step, workers=workers, rank=rank, seed=7)
        batches.set_epoch(epoch)
        per_worker.append(list(batches))
        assert len(per_worker[rank]) == len(batches)
    assert len({len(batches) for batches in per_worker}) == 1
    assert Counter(i for worker in per_worker for batch in worker for i in batch) == Counter(range(count))
    accumulation = passes(step, micro, workers)
    for number in range(0, -(-count // step)):
        seen = {
            index
            for worker in per_worker
            for batch in worker[number * accumulation : (number + 1) * accumulation]
            for index in batch
        }
        assert seen == set(order[number * step : (number + 1) * step])
    assert all(len(batch) <= micro for worker in per_worker for batch in worker)


def test_the_order_changes_with_epoch_and_seed_only() -> None:
    assert epoch_order(50, epoch=0, seed=1) == epoch_order(50, epoch=0, seed=1)
    assert epoch_order(50, epoch=0, seed=1) != epoch_order(50, epoch=1, seed=1)
    assert epoch_order(50, epoch=0, seed=1) != epoch_order(50, epoch=0, seed=2)


def test_group_by_length_puts_like_lengths_together_and_the_longest_first() -> None:
    lengths = [(number * 37) % 101 for number in range(64)]
    order = epoch_order(64, epoch=0, seed=1, lengths=lengths, batch=8)
    assert sorted(order) == list(range(64))
    assert lengths[order[0]] == max(lengths)

    def spread(indices: list[int]) -> int:
        rows = [[lengths[i] for i in indices[k : k + 8]] for k in range(0, 64, 8)]
        return sum(max(row) - min(row) for row in rows)

    assert spread(order) < spread(epoch_order(64, epoch=0, seed=1)) / 1.5


def test_a_last_step_is_spread_evenly() -> None:
    assert split_step([1, 2, 3], micro_batch=4, workers=2, rank=0) == [[1, 2]]
    assert split_step([1, 2, 3], micro_batch=4, workers=2, rank=1) == [[3]]
    assert split_step([1], micro_batch=4, workers=2, rank=1) == [[]]
