from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from alpaca_ray.errors import OutputError, TeacherError
from alpaca_ray.generate.journal import Header, Journal, Outcome, read_header, read_outcomes
from alpaca_ray.generate.ledger import Ledger, Permission

HEADER = Header({"model_name": "m"})


def outcome(number: int) -> Outcome:
    return Outcome(number, [], "", "m", "text", "stop")


def test_an_outcome_counts_only_when_it_is_in_the_file(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        waiting = asyncio.ensure_future(ledger.record(outcome(0)))
        delivery = await ledger.take(0, 5)
        assert (delivery.outcomes, delivery.wants_file) == ([], True)
        assert not waiting.done()
        await ledger.open(tmp_path / "j", HEADER)
        await waiting
        assert [found.request_id for found in read_outcomes(tmp_path / "j")] == [0]
        assert (await ledger.take(0, 5)).outcomes == [outcome(0)]
        assert (await ledger.take(0, 5)).outcomes == [outcome(0)], "given again to a driver that did not get it"
        await ledger.record(outcome(5))
        assert (await ledger.take(1, 5)).outcomes == [outcome(5)]
        assert (await ledger.take(2, 0)).outcomes == []
        assert await ledger.take_in_hand([0, 1]) == {1}
        await ledger.close()

    asyncio.run(scene())
    assert read_header(tmp_path / "j") == HEADER


def test_outcomes_that_come_together_share_a_synchronisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = Journal.append

    def append(self: Journal, rows: list[Outcome]) -> None:
        sizes.append(len(rows))
        real(self, rows)

    monkeypatch.setattr(Journal, "append", append)

    async def scene() -> None:
        ledger = Ledger()
        await ledger.open(tmp_path / "j", HEADER)
        await asyncio.gather(*[ledger.record(outcome(number)) for number in range(64)])
        await ledger.close()

    asyncio.run(scene())
    assert sum(sizes) == 64
    assert len(sizes) < 10
    assert len(list(read_outcomes(tmp_path / "j"))) == 64


def test_permission_is_followed() -> None:
    async def scene() -> None:
        ledger = Ledger()
        assert await ledger.follow(Permission(), 0.01) == Permission(), "a call ends when its time is up"
        following = asyncio.ensure_future(ledger.follow(Permission(), 30))
        await asyncio.sleep(0)
        assert not following.done()
        await ledger.allow(2)
        assert await following == Permission(2)
        await ledger.allow(1)
        assert await ledger.follow(Permission(), 30) == Permission(2), "it is never taken back"
        following = asyncio.ensure_future(ledger.follow(Permission(2), 30))
        await asyncio.sleep(0)
        await ledger.stop("drain")
        assert await following == Permission(2, "drain")

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_the_driver_hears_how_many_requests_are_under_way(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        await ledger.open(tmp_path / "j", HEADER)
        assert (await ledger.take(0, 0)).under_way == 0
        assert await ledger.take_in_hand(range(4)) == {0, 1, 2, 3}
        await ledger.allow(3)
        assert (await ledger.take(0, 0)).under_way == 3
        await ledger.record(outcome(1))
        assert (await ledger.take(0, 0)).under_way == 2
        await ledger.close()

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_an_error_for_all_ends_the_run() -> None:
    async def scene() -> None:
        ledger = Ledger()
        waiting = asyncio.ensure_future(ledger.take(0, 30))
        await asyncio.sleep(0)
        error = TeacherError("wrong key")
        await ledger.fail(error)
        await ledger.fail(TeacherError("wrong key again"))
        assert (await waiting).error is error
        assert await ledger.follow(Permission(), 30) == Permission(0, "drop")

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_disk_that_fails_reaches_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, rows: list[Outcome]) -> None:
        raise OutputError("j: cannot be written: No space left on device")

    async def scene() -> None:
        ledger = Ledger()
        await ledger.open(tmp_path / "j", HEADER)
        monkeypatch.setattr(Journal, "append", full)
        with pytest.raises(OutputError, match="No space left"):
            await ledger.record(outcome(0))
        delivery = await ledger.take(0, 5)
        assert delivery.outcomes == []
        assert "No space left" in str(delivery.error)
        assert await ledger.take_in_hand([0]) == {0}

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_repeated_outcome_is_not_written_twice(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        await ledger.open(tmp_path / "j", HEADER)
        await ledger.record(outcome(0))
        await ledger.record(outcome(0))
        await ledger.close()

    asyncio.run(scene())
    assert len((tmp_path / "j").read_text().splitlines()) == 2
