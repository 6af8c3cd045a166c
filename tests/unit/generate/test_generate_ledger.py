from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from alpaca_ray.errors import OutputError, TeacherError
from alpaca_ray.generate.journal import Header, Journal, Outcome, read_header, read_outcomes
from alpaca_ray.generate.ledger import Ledger

HEADER = Header({"model_name": "m"})


def outcome(number: int) -> Outcome:
    return Outcome(number, [], "", "m", "text", "stop")


def test_an_outcome_counts_only_when_it_is_in_the_file(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        waiting = asyncio.ensure_future(ledger.record(outcome(0)))
        delivery = await ledger.take(5)
        assert (delivery.outcomes, delivery.wants_file) == ([], True)
        assert not waiting.done()
        await ledger.open(tmp_path / "j", HEADER)
        await waiting
        assert [found.request_id for found in read_outcomes(tmp_path / "j")] == [0]
        assert (await ledger.take(5)).outcomes == [outcome(0)]
        assert (await ledger.take(0)).outcomes == []
        assert await ledger.recorded([0, 1]) == {0}
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


def test_requests_wait_until_they_are_allowed() -> None:
    async def scene() -> None:
        ledger = Ledger()
        await ledger.allow(2)
        assert await ledger.admit(0)
        assert await ledger.admit(1)
        third = asyncio.ensure_future(ledger.admit(2))
        await asyncio.sleep(0)
        assert not third.done()
        await ledger.allow(3)
        assert await third
        fourth = asyncio.ensure_future(ledger.admit(3))
        await asyncio.sleep(0)
        await ledger.stop("drain")
        assert not await fourth
        assert not await ledger.admit(0)
        assert await ledger.stopped() == "drain"

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_an_error_for_all_ends_the_run() -> None:
    async def scene() -> None:
        ledger = Ledger()
        waiting = asyncio.ensure_future(ledger.take(30))
        await asyncio.sleep(0)
        error = TeacherError("wrong key")
        await ledger.fail(error)
        await ledger.fail(TeacherError("wrong key again"))
        assert (await waiting).error is error
        assert await ledger.stopped() == "drop"

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
        delivery = await ledger.take(5)
        assert delivery.outcomes == []
        assert "No space left" in str(delivery.error)
        assert await ledger.recorded([0]) == set()

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
