"""Warnings that a machine is about to go, without a cluster: when a worker looks, and when it saves."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2.api.preemption import PreemptionInfo

from alpaca_ray.train import preemption
from alpaca_ray.train.preemption import Survival


class Run:
    """Takes steps as Trainer does, and notes what the callback asks for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, watch: bool = True) -> None:
        self.info: PreemptionInfo | None = None
        self.looks: list[int] = []
        self.saved: list[int] = []
        self.settled = self.noted = self.first = 0
        self.step = 0
        self.may_save = True
        self.survival = Survival(watch=watch, on_first_step=self._first)
        self.survival.trainer = SimpleNamespace(take_note=self._note, settle_checkpoint=self._settle)
        monkeypatch.setattr(ray.train, "get_preemption_info", self._look)

    def _look(self) -> PreemptionInfo | None:
        self.looks.append(self.step)
        return self.info

    def _first(self) -> None:
        self.first += 1

    def _note(self) -> None:
        self.noted += 1

    def _settle(self) -> None:
        self.settled += 1

    def take(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            state: Any = SimpleNamespace(global_step=self.step)
            control = SimpleNamespace(should_save=False)
            self.survival.on_step_end(None, state, control)
            if control.should_save and self.may_save:
                self.saved.append(self.step)
                self.survival.on_save(None, state, control)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(preemption, "_EVERY_SECONDS", 0.0)
    return Run(monkeypatch)


def test_a_warning_is_answered_once_by_a_checkpoint_that_is_waited_for(run: Run) -> None:
    run.take(3)
    assert (run.saved, run.first, run.noted) == ([], 1, 3)
    run.info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [0]})
    run.take(3)
    assert (run.saved, run.settled) == ([4], 1)
    run.info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [0], "b": [1]})
    run.take(2)
    assert (run.saved, run.settled) == ([4, 7], 2)


def test_shortly_before_the_deadline_it_saves_once_more(run: Run) -> None:
    run.info = PreemptionInfo(deadline_ms=int((time.time() + 600) * 1000), preempted_node_to_ranks={"a": [0]})
    run.take(2)
    run.info = PreemptionInfo(deadline_ms=int((time.time() + 5) * 1000), preempted_node_to_ranks={"a": [0]})
    run.take(3)
    assert run.saved == [1, 3]


def test_a_save_that_did_not_happen_is_asked_for_again(run: Run) -> None:
    run.may_save = False
    run.info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [0]})
    run.take(2)
    run.may_save = True
    run.take(2)
    assert run.saved == [3]


def test_it_looks_as_rarely_as_the_steps_allow_and_never_on_a_lone_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(number * 0.5 for number in range(1000))  # half a second passes between two looks at it
    monkeypatch.setattr(preemption.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(preemption, "_EVERY_SECONDS", 2.0)
    run = Run(monkeypatch)
    run.take(20)
    assert run.looks[:3] == [1, 2, 6]
    alone = Run(monkeypatch, watch=False)
    alone.take(20)
    assert (alone.looks, alone.noted) == ([], 20)
