"""A ledger whose files are mirrored in a bucket: nothing leaves, and nothing counts, before it is there."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_generate_ledger import HEADER, hear, journaled, outcome, wants, within

from alpaca_ray.errors import OutputError
from alpaca_ray.generate import ledger as ledger_module
from alpaca_ray.generate.admission import Failure
from alpaca_ray.generate.ledger import Ledger
from alpaca_ray.generate.limits import Rates
from alpaca_ray.generate.sent import FILE_NAME as SENT_FILE
from alpaca_ray.generate.sent import SentLog, read_lost
from alpaca_ray.generate.terms import Terms


class Far:
    """A bucket that takes its time, and can be held up."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.data: list[bytes] = []
        self.busy = threading.Lock()

    def append(self, data: bytes) -> None:
        assert self.busy.acquire(blocking=False), "a file's numbers are given by one writer at a time"
        time.sleep(self.seconds)
        assert self.gate.wait(20)
        self.data.append(data)
        self.busy.release()

    def rows(self) -> list[Any]:
        return [json.loads(line) for line in b"".join(self.data).splitlines()]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> dict[str, Far]:
    mirrors = {"sent.jsonl": Far(), "journal.jsonl": Far()}
    monkeypatch.setattr(ledger_module, "mirror_of", lambda _, name: mirrors[name])
    return mirrors


async def mirrored(folder: Path, terms: Terms | None = None) -> Ledger:
    ledger = Ledger(terms)
    await ledger.open(folder, HEADER)
    await ledger.allow(1000)
    return ledger


def test_a_request_leaves_when_that_is_noted_there(tmp_path: Path, far: dict[str, Far]) -> None:
    sent = far["sent.jsonl"]

    async def scene() -> None:
        ledger = await mirrored(tmp_path)
        assert [list(row) for row in sent.rows()] == [["session"]]
        sent.gate.clear()
        await ledger.push("c", wants(0, 1), [])
        assert await hear(ledger, "c", 0.2) == ([], None)
        sent.gate.set()
        assert await hear(ledger, "c") == ([0, 1], None)
        assert [number for row in sent.rows() for number, *_ in row.get("sent", ())] == [0, 1]
        await ledger.close()

    within(scene())


def test_an_answer_counts_when_it_is_there(tmp_path: Path, far: dict[str, Far]) -> None:
    journal = far["journal.jsonl"]

    async def scene() -> None:
        ledger = await mirrored(tmp_path)
        journal.gate.clear()
        waiting = asyncio.ensure_future(ledger.record("c", [outcome(0)]))
        assert (await ledger.take(0, 0.2)).outcomes == []
        assert not waiting.done()
        journal.gate.set()
        await waiting
        assert (await ledger.take(0, 5)).outcomes == [outcome(0)]
        await ledger.close()

    within(scene())
    assert b"".join(journal.data) == (tmp_path / "journal.jsonl").read_bytes()
    assert b"".join(far["sent.jsonl"].data) == (tmp_path / SENT_FILE).read_bytes()
    assert journaled(tmp_path) == [0]


def test_a_close_waits_for_what_is_not_written_yet(tmp_path: Path, far: dict[str, Far]) -> None:
    journal = far["journal.jsonl"]

    async def scene() -> None:
        ledger = await mirrored(tmp_path)
        await ledger.push("c", wants(2), [])
        assert await hear(ledger, "c") == ([2], None)
        journal.gate.clear()
        recording = [asyncio.ensure_future(ledger.record("c", [outcome(0)]))]
        await asyncio.sleep(0.05)
        recording.append(asyncio.ensure_future(ledger.record("c", [outcome(1)])))
        await ledger.push("c", [], [Failure(2, "status_500")])
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        journal.gate.set()
        await asyncio.gather(closing, *recording)

    within(scene())
    assert journaled(tmp_path) == [0, 1]
    assert b"".join(journal.data) == (tmp_path / "journal.jsonl").read_bytes()
    assert far["sent.jsonl"].rows()[-1] == {"freed": [2]}, "nothing to pay for"


def test_a_close_waits_for_notes_that_are_on_their_way(tmp_path: Path, far: dict[str, Far]) -> None:
    sent = far["sent.jsonl"]

    async def scene() -> None:
        ledger = await mirrored(tmp_path)
        sent.gate.clear()
        await ledger.push("c", wants(0), [])
        await asyncio.sleep(0.05)
        await ledger.push("c", wants(1), [])
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.sleep(0.05)
        sent.gate.set()
        await closing

    within(scene())
    assert b"".join(sent.data) == (tmp_path / SENT_FILE).read_bytes()


def test_a_call_that_is_given_up_takes_no_other_answer_with_it(tmp_path: Path, far: dict[str, Far]) -> None:
    journal = far["journal.jsonl"]

    async def scene() -> None:
        ledger = await mirrored(tmp_path)
        journal.gate.clear()
        given_up, other = (asyncio.ensure_future(ledger.record("c", [outcome(number)])) for number in (0, 1))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await asyncio.sleep(0)
        journal.gate.set()
        await other
        assert (await ledger.take(0, 5)).outcomes == [outcome(0), outcome(1)]
        await ledger.close()

    within(scene())
    assert journaled(tmp_path) == [0, 1]


def test_notes_that_come_together_travel_together(tmp_path: Path, far: dict[str, Far]) -> None:
    far["sent.jsonl"].seconds = 0.05

    async def scene() -> None:
        ledger = await mirrored(tmp_path, Terms(max_in_flight=100))
        for number in range(50):
            await ledger.push("c", wants(number), [])
        heard: list[int] = []
        while len(heard) < 50:
            heard += (await hear(ledger, "c"))[0]
        assert heard == list(range(50))
        await ledger.close()

    within(scene())
    assert len(far["sent.jsonl"].data) <= 4, "the session, the first request, and all others at once"


def test_a_slow_bucket_wastes_no_place_under_a_rate_limit(tmp_path: Path, far: dict[str, Far]) -> None:
    far["sent.jsonl"].seconds = 0.3

    async def scene() -> None:
        ledger = await mirrored(tmp_path, Terms(rates=Rates(requests_per_second=50), max_in_flight=100))
        await ledger.push("c", wants(0), [])
        assert (await hear(ledger, "c"))[0] == [0]  # from this one on it is known how long a note takes
        await ledger.push("c", wants(*range(1, 40)), [])
        behind: list[float] = []
        while len(behind) < 39:
            answer = await ledger.grants("c", 5)
            behind += [time.time() - grant.at for grant in answer.grants]
        assert max(behind) < 0.2, "later than that a client gives its place back"
        await ledger.close()

    within(scene())


def test_what_is_granted_and_not_handed_out_is_free(tmp_path: Path, far: dict[str, Far]) -> None:
    sent = far["sent.jsonl"]

    async def scene() -> None:
        ledger = await mirrored(tmp_path)
        sent.gate.clear()
        await ledger.push("c", wants(0, 1), [])
        await asyncio.sleep(0.05)
        await ledger.stop("drain")
        sent.gate.set()
        while (await ledger.take(0, 0.1)).under_way:
            await asyncio.sleep(0.02)
        assert (await ledger.take(0, 0.0)).reserved.total == 0
        await ledger.close()

    within(scene())
    assert read_lost(tmp_path / SENT_FILE, ()).total == 0


def test_a_bucket_that_fails_ends_the_run(tmp_path: Path, far: dict[str, Far], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        ledger = await mirrored(tmp_path)

        def fail(_: SentLog) -> None:
            raise OutputError("s3://b/sent.jsonl: cannot be written: gone")

        monkeypatch.setattr(SentLog, "flush", fail)
        await ledger.push("c", wants(0), [])
        heard, stopping = await hear(ledger, "c")
        assert (heard, stopping) == ([], "drop")
        error = (await ledger.take(0, 5)).error
        assert "gone" in str(error)

    within(scene())
