"""The client actors' code and the ledger on one event loop, with as few calls to the ledger at once as Ray allows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import ClusterError
from alpaca_ray.generate.fanout import AskTeacher, blocks, client_count, ledger_calls
from alpaca_ray.generate.gate import Gate
from alpaca_ray.generate.journal import Header, read_outcomes
from alpaca_ray.generate.ledger import Ledger, Permission
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin


class Method:
    """A method of an actor: ``.remote`` returns at once, and the call waits its turn in the actor."""

    def __init__(self, call: Callable[..., Awaitable[Any]], turns: asyncio.Semaphore) -> None:
        self._call = call
        self._turns = turns

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        async def turn() -> Any:
            async with self._turns:
                return await self._call(*arguments)

        return asyncio.ensure_future(turn())


class Actor:
    """A ledger that works on ``calls`` calls at once, as a Ray actor with that ``max_concurrency``."""

    def __init__(self, ledger: Ledger, calls: int) -> None:
        self._ledger = ledger
        self._turns = asyncio.Semaphore(calls)

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._ledger, name), self._turns)


def batch(numbers: list[int]) -> dict[str, Any]:
    return {
        "request_id": numbers,
        "seed_ids": [["a"] for _ in numbers],
        "prompt_sha": ["" for _ in numbers],
        "prompt": [f"{number} ###\n4. Instruction:" for number in numbers],
    }


async def work(client: AskTeacher, calls: int, rows: list[list[int]]) -> None:
    """Give a client its map calls, so many at once as Ray Data does."""
    turns = asyncio.Semaphore(calls)

    async def call(numbers: list[int]) -> None:
        async with turns:
            await client(batch(numbers))

    await asyncio.gather(*[call(numbers) for numbers in rows])


@pytest.mark.parametrize(("slots", "clients"), [(64, 64), (100, 100), (24, 24), (256, 4), (7, 3), (1, 1)])
def test_requests_that_wait_never_keep_out_the_calls_that_free_them(tmp_path: Path, slots: int, clients: int) -> None:
    share = slots // clients
    rows, calls = blocks(share)
    count = 3 * clients * calls * rows  # all that clients can hold, and twice as much to come

    async def scene(server: StandInServer) -> None:
        ledger = Ledger()
        actor = Actor(ledger, ledger_calls(slots, clients))
        await ledger.open(tmp_path / "j", Header({}))
        teacher = Teacher(server.url, "stand-in", "completions", "KEY")
        arguments: Any = (actor, teacher, {"max_tokens": 500}, {}, 30.0, 8, share)
        parts = [list(range(start, start + rows)) for start in range(0, count, rows)]
        working = asyncio.gather(*[work(AskTeacher(*arguments), calls, parts[n::clients]) for n in range(clients)])
        taken = 0
        for limit in range(0, count + slots, slots):  # the driver lets a few go, and waits for them
            await actor.allow.remote(min(limit, count))
            while taken < min(limit, count):
                taken += len((await actor.take.remote(taken, 1.0)).outcomes)
        await working
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
        assert len(server.prompts) == count
        assert max(server.prompts.values()) == 1
        assert server.most_at_once <= share * clients
    assert sorted(outcome.request_id for outcome in read_outcomes(tmp_path / "j")) == list(range(count))


def test_a_long_round_leaves_nothing_waiting_in_the_ledger(tmp_path: Path) -> None:
    open_calls = []

    async def scene(server: StandInServer) -> None:
        ledger = Ledger()
        await ledger.open(tmp_path / "j", Header({}))
        await ledger.allow(1000)
        client = AskTeacher(
            Actor(ledger, 50), Teacher(server.url, "stand-in", "completions", "KEY"), {"max_tokens": 5}, {}, 30.0, 8, 1
        )
        for number in range(200):
            await client(batch([number]))
        open_calls.append(len(asyncio.all_tasks()))

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
    assert open_calls[0] < 10


def test_all_requests_of_a_client_wait_in_one_call() -> None:
    async def scene() -> None:
        calls: list[Permission] = []
        news: asyncio.Queue[Permission] = asyncio.Queue()
        stops: list[Permission] = []

        async def follow(known: Permission, timeout: float) -> Permission:
            calls.append(known)
            return await news.get()

        gate = Gate(follow, stops.append)
        waiting = [asyncio.ensure_future(gate.admit(number)) for number in range(100)]
        await asyncio.sleep(0.01)
        assert len(calls) == 1
        news.put_nowait(Permission(40))
        await asyncio.sleep(0.01)
        assert [task.done() for task in waiting] == [True] * 40 + [False] * 60
        assert await gate.admit(39)
        assert (gate.stopping, stops) == (False, [])
        news.put_nowait(Permission(40, "drain"))
        admitted = await asyncio.gather(*waiting)
        assert sum(admitted) == 40
        assert not await gate.admit(0)
        await asyncio.sleep(0.01)
        assert (calls, stops) == ([Permission(), Permission(40)], [Permission(40, "drain")])

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_ledger_that_is_gone_ends_every_wait() -> None:
    async def follow(known: Permission, timeout: float) -> Permission:
        raise ClusterError("gone")

    async def scene() -> list[Any]:
        gate = Gate(follow, lambda permission: None)
        waiting = [gate.admit(number) for number in range(3)]
        return [*await asyncio.gather(*waiting, return_exceptions=True), gate.stopping]

    *errors, stopping = asyncio.run(asyncio.wait_for(scene(), 30))
    assert [str(error) for error in errors] == ["gone"] * 3
    assert not stopping


@pytest.mark.parametrize(
    ("slots", "asked", "clients"), [(32, None, 1), (65, None, 2), (256, None, 4), (8, 20, 8), (100, 100, 100)]
)
def test_clients_for_so_many_in_flight(slots: int, asked: int | None, clients: int) -> None:
    assert client_count(slots, asked) == clients
