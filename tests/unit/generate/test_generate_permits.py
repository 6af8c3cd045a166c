"""What a client knows of the run, on one event loop, against a ledger that the test speaks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from alpaca_ray.errors import ClusterError
from alpaca_ray.generate.admission import Failure, Grant, Want
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.permits import FOLLOW_SECONDS, Batcher, Permits
from alpaca_ray.generate.terms import Answer, StopKind


def within(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 30))


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def want(number: int) -> Want:
    return Want(number, Tokens(1, 1))


class Scripted:
    """The ledger's side: what was pushed, and answers that the test gives."""

    def __init__(self) -> None:
        self.wants: list[int] = []
        self.failures: list[Failure] = []
        self.pushes = 0
        self.follows: list[float] = []
        self.stops: list[StopKind] = []
        self.answers: asyncio.Queue[Answer | Exception] = asyncio.Queue()
        self.permits = Permits(self.push, self.follow, self.stops.append)

    async def push(self, wants: list[Want], failures: list[Failure]) -> None:
        self.pushes += 1
        self.wants += [one.request_id for one in wants]
        self.failures += failures

    async def follow(self, seconds: float) -> Answer:
        self.follows.append(seconds)
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def grant(self, *numbers: int) -> None:
        self.answers.put_nowait(Answer([Grant(number, 0) for number in numbers]))


def test_items_that_come_together_travel_together() -> None:
    async def scene() -> None:
        calls: list[list[int]] = []
        gates = [asyncio.Event() for _ in range(5)]

        async def send(items: list[int]) -> None:
            calls.append(items)
            await gates[len(calls) - 1].wait()

        batcher = Batcher(send)
        first = batcher.put(0)
        await settle()
        second = batcher.put(1)
        await settle()
        third = batcher.put(2)
        await settle()
        rest = [batcher.put(number) for number in range(3, 60)]
        await settle()
        assert calls == [[0], [1], [2]], "a few calls are open, and no more"
        gates[1].set()
        await settle()
        assert (first.done(), second.done(), third.done()) == (False, True, False)
        assert calls[3:] == [list(range(3, 60))]
        assert not any(done.done() for done in rest)
        gates[3].set()
        await asyncio.gather(*rest)
        gates[0].set()
        gates[2].set()
        await asyncio.gather(first, third)
        assert len(calls) == 4

    within(scene())


def test_an_error_reaches_those_whose_call_it_was() -> None:
    async def scene() -> None:
        async def send(items: list[int]) -> None:
            await asyncio.sleep(0)
            if 0 in items:
                raise ClusterError("gone")

        batcher = Batcher(send)
        found = await asyncio.gather(*[batcher.put(number) for number in range(3)], return_exceptions=True)
        assert [str(error) for error in found] == ["gone"] * 3
        await batcher.put(4)
        failing = batcher.put(0)
        await settle()
        failing.cancel()  # nobody waits for it any more
        await batcher.put(5)

    within(scene())


def test_all_requests_of_a_client_wait_in_one_call() -> None:
    async def scene() -> None:
        ledger = Scripted()
        assert ledger.follows == [], "not before something is wanted"
        waiting = [asyncio.ensure_future(ledger.permits.get(want(number))) for number in range(100)]
        await settle()
        assert ledger.follows == [FOLLOW_SECONDS]
        assert sorted(ledger.wants) == list(range(100))
        assert ledger.pushes <= 3
        ledger.grant(*range(40))
        await settle()
        assert [task.done() for task in waiting] == [True] * 40 + [False] * 60
        assert waiting[7].result() == Grant(7, 0)
        ledger.answers.put_nowait(Answer([]))  # its time was up
        await settle()
        assert len(ledger.follows) == 3
        assert (ledger.permits.stopping, ledger.stops, ledger.failures) == (False, [], [])
        ledger.grant(*range(40, 100))
        await asyncio.gather(*waiting)
        ledger.answers.put_nowait(Answer([], "drop"))
        await settle()

    within(scene())


@pytest.mark.parametrize("kind", ["drain", "drop"])
def test_a_stop_ends_every_wait(kind: StopKind) -> None:
    async def scene() -> None:
        ledger = Scripted()
        waiting = [asyncio.ensure_future(ledger.permits.get(want(number))) for number in range(3)]
        await settle()
        ledger.answers.put_nowait(Answer([Grant(1, 0)], kind))
        assert await asyncio.gather(*waiting) == [None] * 3
        await settle()
        assert ledger.permits.stopping
        assert ledger.stops == [kind]
        assert ledger.failures == [Failure(1, "not_sent")], "what was granted too late is given back"
        assert await ledger.permits.get(want(9)) is None
        assert 9 not in ledger.wants
        assert len(ledger.follows) == 1

    within(scene())


def test_a_grant_that_nobody_waits_for_is_given_back() -> None:
    async def scene() -> None:
        ledger = Scripted()
        waiting = [asyncio.ensure_future(ledger.permits.get(want(number))) for number in range(3)]
        await settle()
        waiting[1].cancel()
        await settle()
        ledger.grant(0, 1, 2, 77)
        assert await waiting[0] == Grant(0, 0)
        assert await waiting[2] == Grant(2, 0)
        await settle()
        assert ledger.failures == [Failure(1, "not_sent"), Failure(77, "not_sent")]
        assert not any(failure.lost for failure in ledger.failures)
        again = asyncio.ensure_future(ledger.permits.get(want(1)))
        await settle()
        ledger.grant(1)
        assert await again == Grant(1, 0)
        ledger.answers.put_nowait(Answer([], "drop"))
        await settle()

    within(scene())


def test_times_of_another_machine_are_told_by_this_ones_clock() -> None:
    """The ledger's clock is an hour ahead; what an answer took on its way is not taken for a difference."""

    async def scene() -> None:
        ledger = Scripted()
        waiting = [asyncio.ensure_future(ledger.permits.get(want(number))) for number in range(3)]
        await settle()
        there = time.time() + 3600
        ledger.answers.put_nowait(Answer([Grant(0, 0, at=there + 10), Grant(1, 0)], now=there))
        here = (await waiting[0]).at
        assert here == pytest.approx(time.time() + 10, abs=1)
        assert (await waiting[1]).at == 0, "no time is none"
        there = time.time() + 3600
        ledger.answers.put_nowait(Answer([Grant(2, 0, at=there)], now=there - 7))  # seven seconds under way
        assert (await waiting[2]).at == pytest.approx(time.time(), abs=1)
        ledger.answers.put_nowait(Answer([], "drop"))
        await settle()

    within(scene())


def test_a_ledger_that_is_gone_ends_every_wait() -> None:
    async def scene() -> None:
        ledger = Scripted()
        waiting = [asyncio.ensure_future(ledger.permits.get(want(number))) for number in range(3)]
        await settle()
        ledger.answers.put_nowait(ClusterError("gone"))
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(error) for error in errors] == ["gone"] * 3
        with pytest.raises(ClusterError, match="gone"):
            await ledger.permits.get(want(4))
        assert not ledger.permits.stopping
        assert ledger.stops == []

    within(scene())


def test_a_push_that_fails_reaches_whoever_pushed() -> None:
    async def scene() -> None:
        async def push(wants: list[Want], failures: list[Failure]) -> None:
            raise ClusterError("gone")

        async def follow(seconds: float) -> Answer:
            await asyncio.sleep(3600)
            return Answer([])

        permits = Permits(push, follow, lambda kind: None)
        with pytest.raises(ClusterError, match="gone"):
            await permits.get(want(0))
        with pytest.raises(ClusterError, match="gone"):
            await permits.failed(Failure(0, "timeout"))

    within(scene())


def test_a_failure_is_with_the_ledger_when_it_is_reported() -> None:
    async def scene() -> None:
        ledger = Scripted()
        failure = Failure(3, "rate_limit", "slow down", retry_after=2.0)
        await ledger.permits.failed(failure)
        assert ledger.failures == [failure]

    within(scene())


def test_what_comes_while_the_last_calls_end_is_sent_too() -> None:
    """Three calls end in one turn of the loop, and whoever waited for the first has more to send at once."""

    async def scene() -> list[list[int]]:
        sent: list[list[int]] = []
        gate = asyncio.Event()

        async def send(items: list[int]) -> None:
            sent.append(items)
            await gate.wait()

        batcher: Batcher[int] = Batcher(send)

        async def again(first: int) -> None:
            await batcher.put(first)
            await batcher.put(10 + first)

        tasks = []
        for number in range(3):
            tasks.append(asyncio.ensure_future(again(number)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        gate.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        return sent

    assert sorted(item for items in asyncio.run(scene()) for item in items) == [0, 1, 2, 10, 11, 12]
