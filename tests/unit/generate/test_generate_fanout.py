"""The client actors' code and the ledger on one event loop, with as few calls to the ledger at once as Ray allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from generate_support import scripted, teacher_at

from alpaca_ray.errors import ClusterError
from alpaca_ray.generate.admission import Failure, Want
from alpaca_ray.generate.budget import Limits, Tokens
from alpaca_ray.generate.client import Sampling, TeacherClient
from alpaca_ray.generate.fanout import AskTeacher, blocks, client_count, ledger_calls, open_blocks
from alpaca_ray.generate.journal import FILE_NAME, Header, read_journal
from alpaca_ray.generate.ledger import Ledger
from alpaca_ray.generate.limits import Rates
from alpaca_ray.generate.prompt import Prompt
from alpaca_ray.generate.sent import FILE_NAME as SENT_FILE
from alpaca_ray.generate.sent import read_lost
from alpaca_ray.generate.terms import Terms
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


class Prompts:
    """Makes prompts as ``PromptMaker`` does: of a number, and of records from the pool where it ``draws``."""

    def __init__(self, *, draws: bool = False) -> None:
        self.draws = draws

    def make(self, request_id: int, machine: Sequence[dict[str, Any]] = ()) -> Prompt:
        shown = " ".join(record["instruction"] for record in machine)
        return Prompt(request_id, ["a"], f"{request_id} {shown} ###\n4. Instruction:")


def client(actor: Actor, server: Any, *, prompts: Prompts | None = None, max_retries: int = 8) -> AskTeacher:
    return AskTeacher(
        actor,
        prompts or Prompts(),
        [teacher_at(server.url)],
        {"completions": Sampling({}, 500)},
        {},
        timeout=30,
        max_retries=max_retries,
    )


def batch(numbers: Sequence[int]) -> dict[str, Any]:
    return {"request_id": list(numbers)}


async def work(asker: AskTeacher, calls: int, parts: Sequence[Sequence[int]]) -> list[int]:
    """Give a client its map calls, so many at once as Ray Data does; return what they answer."""
    turns = asyncio.Semaphore(calls)

    async def call(numbers: Sequence[int]) -> list[int]:
        async with turns:
            return (await asker(batch(numbers)))["request_id"]

    return list(chain(*await asyncio.gather(*[call(numbers) for numbers in parts])))


def journaled(folder: Path) -> list[int]:
    return sorted(outcome.request_id for outcome in read_journal(folder / FILE_NAME).outcomes)


@pytest.mark.parametrize(("slots", "clients"), [(64, 64), (100, 100), (24, 24), (256, 4), (7, 3), (1, 1)])
def test_requests_that_wait_never_keep_out_the_calls_that_free_them(tmp_path: Path, slots: int, clients: int) -> None:
    calls = open_blocks(slots // clients)
    count = 16 * clients * calls + 3 * slots  # all that clients can hold, and more to come

    async def scene(server: StandInServer) -> None:
        ledger = Ledger(Terms(max_in_flight=slots))
        actor = Actor(ledger, ledger_calls(slots, clients))
        await ledger.open(tmp_path, Header({}))
        parts = list(blocks(range(count)))
        askers = [client(actor, server) for _ in range(clients)]
        working = asyncio.gather(*[work(asker, calls, parts[n::clients]) for n, asker in enumerate(askers)])
        taken = 0
        for limit in (slots, slots + 1, 3 * slots, count):  # the driver lets a few go, and waits for them
            await actor.allow.remote(limit)
            while taken < limit:
                taken += len((await actor.take.remote(taken, 1.0)).outcomes)
        assert sorted(chain(*await working)) == list(range(count))
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
        assert len(server.prompts) == count
        assert max(server.prompts.values()) == 1
        assert server.most_at_once <= slots
    assert journaled(tmp_path) == list(range(count))


def test_a_call_of_a_few_slots_leaves_room_even_at_the_smallest_concurrency(tmp_path: Path) -> None:
    """Waiting requests take no calls: all clients' work gets through a ledger that does little more at once."""
    clients = 4

    async def scene(server: StandInServer) -> None:
        ledger = Ledger(Terms(max_in_flight=1))
        actor = Actor(ledger, clients + 1)  # each client's waiting call, and one that works
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(64)
        parts = list(blocks(range(64)))
        await asyncio.gather(*[work(client(actor, server), 4, parts[n::clients]) for n in range(clients)])
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
        assert server.most_at_once == 1
    assert journaled(tmp_path) == list(range(64))


def test_a_long_round_leaves_nothing_waiting_in_the_ledger(tmp_path: Path) -> None:
    open_calls = []

    async def scene(server: StandInServer) -> None:
        ledger = Ledger()
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(1000)
        asker = client(Actor(ledger, 50), server)
        for number in range(200):
            await asker(batch([number]))
        open_calls.append(len(asyncio.all_tasks()))

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
    assert open_calls[0] < 10


def test_failures_free_their_slots_and_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpaca_ray.generate.client._FIRST_WAIT", 0.001)
    faults = {"rate_500": 0.2, "rate_drop": 0.1, "rate_truncated_json": 0.1, "rate_empty": 0.1, "tasks": 1}

    async def scene(server: StandInServer) -> None:
        ledger = Ledger(Terms(max_in_flight=4))
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(100)
        await work(client(Actor(ledger, 50), server, max_retries=30), 4, list(blocks(range(100))))
        delivery = await ledger.take(0, 0)
        assert len(delivery.outcomes) == 100
        assert (delivery.under_way, delivery.reserved) == (0, Tokens())
        counted = [Tokens.of_usage(found) for one in delivery.outcomes for found in (one.usage, one.lost)]
        assert delivery.spent == sum(counted, Tokens())
        await ledger.close()

    with standin(StandIn.resolve(faults)) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
        assert server.most_at_once <= 4
    outcomes = list(read_journal(tmp_path / FILE_NAME).outcomes)
    assert {outcome.error for outcome in outcomes} == {None, "no_text"}
    assert {kind for outcome in outcomes for kind in outcome.failures} == {
        "status_500",
        "connection",
        "bad_answer",
        "no_text",
    }
    answered = {outcome.request_id for outcome in outcomes}
    assert read_lost(tmp_path / SENT_FILE, answered) == Tokens(), "every attempt is accounted for"


def test_64_in_flight_stay_within_a_budget(tmp_path: Path) -> None:
    limit = 60_000
    exhausted = []

    async def scene(server: StandInServer) -> None:
        ledger = Ledger(Terms(max_in_flight=64, limits=Limits(max_tokens_total=limit)))
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(10_000)
        asker = client(Actor(ledger, 100), server)
        working = asyncio.ensure_future(work(asker, 40, list(blocks(range(2000)))))
        taken = 0
        while not exhausted:
            delivery = await ledger.take(taken, 1.0)
            taken += len(delivery.outcomes)
            assert delivery.spent.total + delivery.reserved.total <= limit
            if delivery.exhausted:
                exhausted.append(delivery.exhausted)
        await ledger.stop("drain")
        await working
        await ledger.close()

    with standin(StandIn.resolve({"answer_tokens": [1, 600], "latency": 0.005, "jitter": 0.02})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 120))
        used = server.tokens.total()
        assert server.most_at_once > 16
    assert exhausted == ["--max_tokens_total"]
    assert limit - 700 <= used <= limit


@pytest.mark.parametrize("kind", ["drain", "drop"])
def test_a_stop_ends_every_map_call(tmp_path: Path, kind: Any) -> None:
    answered = []

    async def scene(server: StandInServer) -> None:
        ledger = Ledger(Terms(max_in_flight=5))
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(1000)
        working = asyncio.ensure_future(work(client(Actor(ledger, 100), server), 10, list(blocks(range(500)))))
        while len(server.prompts) < 5:
            await asyncio.sleep(0.01)
        await ledger.stop(kind)
        answered.extend(await working)
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1, "latency": 0.5})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 60))
        assert sum(server.prompts.values()) == 5
    assert sorted(answered) == journaled(tmp_path) == (list(range(5)) if kind == "drain" else [])


def test_a_repeated_map_call_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    async def scene(server: StandInServer) -> None:
        ledger = Ledger()
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(10)
        actor = Actor(ledger, 100)
        assert await client(actor, server)(batch([0, 1, 2])) == {"request_id": [0, 1, 2]}
        assert await client(actor, server)(batch(range(5))) == {"request_id": [3, 4]}
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 60))
        assert set(server.prompts.values()) == {1}
    assert journaled(tmp_path) == list(range(5))


def test_prompts_that_show_the_pool_wait_for_its_records(tmp_path: Path) -> None:
    async def scene(server: StandInServer) -> None:
        ledger = Ledger()
        await ledger.open(tmp_path, Header({}))
        asker = client(Actor(ledger, 100), server, prompts=Prompts(draws=True))
        working = asyncio.ensure_future(asker(batch([0, 1])))
        await asyncio.sleep(0.1)
        assert not server.prompts
        await ledger.allow(2, {1: [{"instruction": "shown"}]})
        assert await working == {"request_id": [0, 1]}
        late = asyncio.ensure_future(asker(batch([2])))
        await asyncio.sleep(0.01)
        await ledger.stop("drain")
        assert await late == {"request_id": []}
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 60))
        assert sorted(server.prompts) == ["0  ###\n4. Instruction:", "1 shown ###\n4. Instruction:"]


def test_the_first_of_a_block_do_not_wait_for_the_last(tmp_path: Path) -> None:
    """The driver may need their answers to know what the others show."""

    async def scene(server: StandInServer) -> None:
        ledger = Ledger()
        await ledger.open(tmp_path, Header({}))
        working = asyncio.ensure_future(
            client(Actor(ledger, 100), server, prompts=Prompts(draws=True))(batch([3, 0, 2, 1]))
        )
        taken: list[int] = []
        for number in range(4):
            await ledger.allow(number + 1, {number: [{"instruction": f"after {len(taken)}"}]})
            while len(taken) <= number:
                delivery = await ledger.take(len(taken), 1.0)
                taken += [outcome.request_id for outcome in delivery.outcomes]
            assert number == 3 or not working.done()
        assert taken == [0, 1, 2, 3]
        assert sorted((await working)["request_id"]) == taken
        await ledger.close()

    with standin(StandIn.resolve({"tasks": 1})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 60))
        assert sorted(server.prompts) == [f"{n} after {n} ###\n4. Instruction:" for n in range(4)]


def test_a_client_that_is_held_up_sends_no_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop stands still while many requests become due: they give their places back and get new ones."""
    failures: list[Failure] = []

    class Watched(Ledger):
        async def push(self, client: str, wants: Sequence[Want], failed: Sequence[Failure]) -> None:
            failures.extend(failed)
            await super().push(client, wants, failed)

    async def scene(server: StandInServer) -> list[float]:
        ledger = Watched(Terms(rates=Rates(requests_per_second=40), max_in_flight=64))
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(40)
        asker = client(Actor(ledger, 100), server)
        sent: list[float] = []
        post = TeacherClient._send

        async def send(self: TeacherClient, *given: Any) -> Any:
            sent.append(time.monotonic())
            return await post(self, *given)

        monkeypatch.setattr(TeacherClient, "_send", send)
        working = asyncio.ensure_future(work(asker, 4, list(blocks(range(40)))))
        while len(sent) < 4:
            await asyncio.sleep(0.005)
        time.sleep(0.8)
        assert sorted(await working) == list(range(40))
        assert (await ledger.take(0, 0)).under_way == 0
        await ledger.close()
        return sent

    with standin(StandIn.resolve({"tasks": 1})) as server:
        sent = asyncio.run(asyncio.wait_for(scene(server), 60))
        assert set(server.prompts.values()) == {1}
    assert {failure.kind for failure in failures} == {"not_sent"}
    assert len(failures) >= 8, "half a second's requests had been granted ahead, and all became late"
    assert len(sent) == 40, "nothing was sent twice"
    assert journaled(tmp_path) == list(range(40))


def test_a_fatal_refusal_stops_all_and_reaches_the_driver(tmp_path: Path) -> None:
    async def scene(server: Any) -> None:
        ledger = Ledger(Terms(max_in_flight=2))
        await ledger.open(tmp_path, Header({}))
        await ledger.allow(100)
        assert await work(client(Actor(ledger, 100), server), 4, list(blocks(range(100)))) == []
        assert "401: wrong key" in str((await ledger.take(0, 5)).error)
        await ledger.close()

    with scripted((401, {"error": {"message": "wrong key"}})) as server:
        asyncio.run(asyncio.wait_for(scene(server), 60))
        assert len(server.bodies) <= 2


def test_a_ledger_that_is_gone_ends_the_map_call(tmp_path: Path) -> None:
    class Gone(Ledger):
        async def grants(self, client: str, timeout: float) -> Any:
            raise ClusterError("the ledger has died")

    async def scene(server: StandInServer) -> None:
        ledger = Gone()
        await ledger.open(tmp_path, Header({}))
        with pytest.raises(ClusterError, match="the ledger has died"):
            await client(Actor(ledger, 100), server)(batch([0, 1]))

    with standin() as server:
        asyncio.run(asyncio.wait_for(scene(server), 60))
        assert not server.prompts


@pytest.mark.parametrize(
    ("slots", "asked", "clients"), [(32, None, 1), (65, None, 2), (256, None, 4), (8, 20, 8), (100, 100, 100)]
)
def test_clients_for_so_many_in_flight(slots: int, asked: int | None, clients: int) -> None:
    assert client_count(slots, asked) == clients


@pytest.mark.parametrize(("ids", "border"), [(range(0), None), (range(5, 100), None), (range(250, 600), 256)])
def test_blocks_cover_a_range_and_cross_no_border(ids: range, border: int | None) -> None:
    parts = list(blocks(ids, border))
    assert [number for part in parts for number in part] == list(ids)
    assert all(0 < len(part) <= 16 for part in parts)
    if border is not None:
        assert all(part[0] // border == part[-1] // border for part in parts)


@pytest.mark.parametrize(("slots", "clients"), [(1, 1), (32, 1), (256, 4), (100, 100), (2000, 32)])
def test_open_blocks_hold_more_than_the_slots(slots: int, clients: int) -> None:
    share = slots // clients
    assert 16 * open_blocks(share) >= 2 * share
    assert ledger_calls(slots, clients) > clients * (open_blocks(share) + 5)
