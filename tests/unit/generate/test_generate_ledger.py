from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import OutputError, TeacherError
from alpaca_ray.generate.admission import Failure, Grant, Want
from alpaca_ray.generate.budget import Limits, Tokens
from alpaca_ray.generate.journal import FILE_NAME, Header, Journal, Outcome, read_journal
from alpaca_ray.generate.ledger import Ledger
from alpaca_ray.generate.limits import Rates
from alpaca_ray.generate.sent import FILE_NAME as SENT_FILE
from alpaca_ray.generate.sent import SentLog, read_lost
from alpaca_ray.generate.terms import Answer, Terms

HEADER = Header({"model_name": "m"})
WORST = Tokens(10, 90)
USAGE = {"prompt_tokens": 4, "completion_tokens": 6}


def outcome(number: int) -> Outcome:
    return Outcome(number, [], "", "m", "text", "stop", USAGE)


def wants(*numbers: int) -> list[Want]:
    return [Want(number, WORST) for number in numbers]


def within(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 30))


async def opened(folder: Path, terms: Terms | None = None, limit: int = 1000) -> Ledger:
    ledger = Ledger(terms)
    await ledger.open(folder, HEADER)
    await ledger.allow(limit)
    return ledger


async def hear(ledger: Ledger, client: str, timeout: float = 30) -> tuple[list[int], str | None]:
    """Return the requests that a client may send, and whether the run is stopping."""
    answer = await ledger.grants(client, timeout)
    assert all(grant.endpoint == 0 for grant in answer.grants)
    return [grant.request_id for grant in answer.grants], answer.stopping


def journaled(folder: Path) -> list[int]:
    return [found.request_id for found in read_journal(folder / FILE_NAME).outcomes]


def test_an_outcome_counts_only_when_it_is_in_the_file(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        waiting = asyncio.ensure_future(ledger.record("c", [outcome(0)]))
        delivery = await ledger.take(0, 5)
        assert (delivery.outcomes, delivery.wants_file) == ([], True)
        assert not waiting.done()
        await ledger.open(tmp_path, HEADER)
        await waiting
        assert journaled(tmp_path) == [0]
        assert (await ledger.take(0, 5)).outcomes == [outcome(0)]
        assert (await ledger.take(0, 5)).outcomes == [outcome(0)], "given again to a driver that did not get it"
        await ledger.record("c", [outcome(5)])
        assert (await ledger.take(1, 5)).outcomes == [outcome(5)]
        assert (await ledger.take(2, 0)).outcomes == []
        assert await ledger.take_in_hand("c", [0, 1]) == {1}
        await ledger.close()

    within(scene())
    assert read_journal(tmp_path / FILE_NAME).header == HEADER


def test_a_call_that_is_given_up_before_there_is_a_file_takes_no_other_with_it(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        given_up, other = (asyncio.ensure_future(ledger.record("c", [outcome(number)])) for number in (0, 1))
        await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.sleep(0)
        await ledger.open(tmp_path, HEADER)
        await other
        assert (await ledger.take(0, 5)).outcomes == [outcome(0), outcome(1)], "both were paid for"
        await ledger.close()

    within(scene())
    assert journaled(tmp_path) == [0, 1]


def test_outcomes_that_come_together_share_a_synchronisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = Journal.append

    def append(self: Journal, rows: list[Outcome]) -> None:
        sizes.append(len(rows))
        real(self, rows)

    monkeypatch.setattr(Journal, "append", append)

    async def scene() -> None:
        ledger = await opened(tmp_path)
        await asyncio.gather(*[ledger.record("c", [outcome(2 * n), outcome(2 * n + 1)]) for n in range(32)])
        await ledger.close()

    within(scene())
    assert sum(sizes) == 64
    assert len(sizes) < 10
    assert sorted(journaled(tmp_path)) == list(range(64))


def test_grants_reach_the_client_that_asked() -> None:
    async def scene() -> None:
        ledger = Ledger(Terms(max_in_flight=3))
        assert await hear(ledger, "a", 0.01) == ([], None), "a call ends when its time is up"
        following = asyncio.ensure_future(hear(ledger, "a"))
        await ledger.push("a", wants(0, 2), [])
        await ledger.push("b", wants(1, 3), [])
        await asyncio.sleep(0.01)
        assert not following.done(), "the driver has allowed nothing"
        await ledger.allow(2)
        assert await following == ([0], None)
        assert await hear(ledger, "b") == ([1], None)
        await ledger.allow(1)
        await ledger.allow(10)
        assert await hear(ledger, "a") == ([2], None)
        following = asyncio.ensure_future(hear(ledger, "b"))
        await asyncio.sleep(0.01)
        assert not following.done(), "three are under way"
        await ledger.push("a", [], [Failure(0, "status_500")])
        assert await following == ([3], None)

    within(scene())


def test_a_slot_is_free_before_the_disk_has_answered() -> None:
    async def scene() -> None:
        ledger = Ledger(Terms(max_in_flight=1))
        await ledger.allow(10)
        await ledger.push("a", wants(0, 1), [])
        assert await hear(ledger, "a") == ([0], None)
        recording = asyncio.ensure_future(ledger.record("a", [outcome(0)]))  # no file is open
        assert await hear(ledger, "a") == ([1], None)
        assert not recording.done()
        recording.cancel()

    within(scene())


def test_a_rate_limit_is_waited_for() -> None:
    async def scene() -> None:
        ledger = Ledger(Terms(rates=Rates(requests_per_second=50)))
        await ledger.allow(60)
        await ledger.push("a", wants(*range(60)), [])
        assert (await ledger.grants("b", 0.01)).grants == []
        grants: list[Grant] = []
        while len(grants) < 32:  # nothing happens but time
            grants += (await ledger.grants("a", 30)).grants
        assert [grant.request_id for grant in grants] == list(range(32))
        times = [grant.at for grant in grants]
        assert times == sorted(times)
        assert times[-1] - times[0] > 0.5 * 31 / 50
        ledger = Ledger(Terms(rates=Rates(requests_per_minute=0.5)))
        await ledger.allow(60)
        await ledger.push("a", wants(0, 1), [])
        assert await hear(ledger, "a") == ([0], None)
        assert await hear(ledger, "a", 0.05) == ([], None)
        await ledger.stop("drop")

    within(scene())


@pytest.mark.parametrize("kind", ["drain", "drop"])
def test_a_stop_reaches_whoever_waits_and_nothing_more_is_granted(kind: Any) -> None:
    async def scene() -> None:
        ledger = Ledger()
        following = asyncio.ensure_future(hear(ledger, "a"))
        briefing = asyncio.ensure_future(ledger.brief([5], 30))
        await asyncio.sleep(0)
        await ledger.stop(kind)
        assert await following == ([], kind)
        assert await briefing == {5: []}, "all is known: nothing of it will be sent"
        assert await ledger.brief([5, 6], 30) == {5: [], 6: []}
        await ledger.allow(10)
        await ledger.push("a", wants(0), [])
        assert await hear(ledger, "a") == ([], kind)

    within(scene())


def test_briefs_come_when_the_driver_knows_them(tmp_path: Path) -> None:
    shown = [{"instruction": "x"}]

    async def scene() -> None:
        ledger = Ledger()
        await ledger.open(tmp_path, HEADER)
        assert await ledger.brief([0, 1], 0.01) == {}, "a call ends when its time is up"
        waiting = asyncio.ensure_future(ledger.brief([0, 1, 2, 3], 30))
        beyond = asyncio.ensure_future(ledger.brief([2, 3], 30))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await ledger.allow(2, {1: shown})
        assert await waiting == {0: [], 1: shown}, "the others of its block are not waited for"
        assert await beyond == {}
        assert await ledger.brief([2, 3], 0.01) == {}
        beyond = asyncio.ensure_future(ledger.brief([2, 3], 30))
        await asyncio.sleep(0.01)
        await ledger.allow(1)  # says nothing new
        await asyncio.sleep(0.01)
        assert not beyond.done()
        await ledger.allow(3, {2: shown})
        assert await beyond == {2: shown}
        await ledger.close()

    within(scene())


def test_a_brief_is_kept_until_its_request_has_an_outcome(tmp_path: Path) -> None:
    """A client that dies after it was granted a request leaves it to another, which must send the same prompt."""
    shown = [{"instruction": "x"}]

    async def scene() -> None:
        ledger = await opened(tmp_path, limit=0)
        await ledger.allow(2, {0: shown, 1: shown})
        await ledger.take_in_hand("a", [0, 1])
        assert await ledger.brief([0, 1], 30) == {0: shown, 1: shown}
        await ledger.push("a", wants(0, 1), [])
        assert await hear(ledger, "a") == ([0, 1], None)
        await ledger.record("a", [outcome(0)])
        assert await ledger.take_in_hand("b", [0, 1]) == {1}
        assert await ledger.brief([1], 30) == {1: shown}
        assert await ledger.brief([0], 30) == {0: []}, "a long run must not keep them all"
        await ledger.close()

    within(scene())


def test_an_answer_tells_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        ledger = Ledger()
        monkeypatch.setattr("alpaca_ray.generate.ledger.time.time", lambda: 1234.5)
        assert await ledger.grants("a", 0) == Answer([], None, 1234.5)
        await ledger.stop("drop")
        assert await ledger.grants("a", 0) == Answer([], "drop", 1234.5)

    within(scene())


def test_the_driver_hears_what_is_under_way_and_spent(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path, Terms(spent=Tokens(100, 100)), limit=3)
        delivery = await ledger.take(0, 0)
        assert (delivery.under_way, delivery.spent, delivery.reserved) == (0, Tokens(100, 100), Tokens())
        assert await ledger.take_in_hand("a", range(4)) == {0, 1, 2, 3}
        await ledger.push("a", wants(0, 1, 2, 3), [])
        delivery = await ledger.take(0, 0)
        assert (delivery.under_way, delivery.reserved) == (3, Tokens(30, 270))
        estimated = Outcome(2, [], "", "m", "text", estimated={"prompt_tokens": 7, "completion_tokens": 8})
        await ledger.record("a", [outcome(1), estimated])
        await ledger.push("a", [], [Failure(0, "timeout", "no answer in time", lost=True)])
        delivery = await ledger.take(0, 0)
        assert (delivery.under_way, delivery.reserved) == (0, Tokens())
        assert delivery.spent == Tokens(100, 100) + Tokens(4, 6) + Tokens(7, 8) + WORST
        assert delivery.trouble == "timeout: no answer in time"
        await ledger.close()

    within(scene())


def test_a_used_up_budget_wakes_the_driver(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path, Terms(limits=Limits(max_tokens_total=150)))
        await ledger.push("a", wants(0, 1), [])
        await ledger.record("a", [Outcome(0, [], "", "m", "x", "stop", {"prompt_tokens": 10, "completion_tokens": 50})])
        delivery = await ledger.take(0, 30)
        assert (delivery.exhausted, delivery.spent) == ("--max_tokens_total", Tokens(10, 50))
        assert [found.request_id for found in delivery.outcomes] == [0]
        taking = asyncio.ensure_future(ledger.take(1, 30))
        await asyncio.sleep(0.05)
        assert not taking.done(), "it is news once"
        taking.cancel()
        await ledger.close()

    within(scene())


def test_a_pause_is_told_once(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path)
        taking = asyncio.ensure_future(ledger.take(0, 30))
        await ledger.push("a", wants(*range(10)), [])
        await ledger.push("a", [], [Failure(number, "rate_limit", "slow down") for number in range(10)])
        assert ["nothing but rate limits (slow down)" in note for note in (await taking).notes] == [True]
        assert (await ledger.take(0, 0)).notes == []
        await ledger.close()

    within(scene())


def test_an_answer_of_no_use_ends_a_run_of_rate_limits(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path)
        await ledger.push("a", wants(*range(19)), [])
        await ledger.push("a", [], [Failure(number, "rate_limit", "slow down") for number in range(9)])
        await ledger.record("a", [Outcome(9, [], "", "m", error="refusal", message="no")])
        await ledger.push("a", [], [Failure(number, "rate_limit", "slow down") for number in range(10, 19)])
        assert (await ledger.take(0, 0)).notes == []
        await ledger.close()

    within(scene())


def test_what_a_client_that_died_had_goes_to_another(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path)
        assert await ledger.take_in_hand("a", [0, 1, 2]) == {0, 1, 2}
        assert await ledger.take_in_hand("c", [3]) == {3}
        await ledger.push("a", wants(0, 1, 2), [])
        await ledger.push("c", wants(3), [])
        await ledger.record("a", [outcome(1)])
        assert await ledger.take_in_hand("b", [0, 1, 2]) == {0, 2}
        delivery = await ledger.take(0, 0)
        assert delivery.spent == WORST + WORST + Tokens(4, 6), "in full"
        assert delivery.under_way == 1, "the other client's"
        await ledger.push("b", wants(0, 2), [])
        assert [grant.request_id for grant in (await ledger.grants("b", 30)).grants] == [0, 2]
        assert await ledger.take_in_hand("b", [0, 2]) == {0, 2}, "asked twice by the same client, nothing changes"
        assert (await ledger.take(1, 0)).under_way == 3
        await ledger.record("b", [outcome(0), outcome(2)])
        await ledger.push("c", [], [Failure(3, "status_500")])
        await ledger.close()

    within(scene())
    assert read_lost(tmp_path / SENT_FILE, journaled(tmp_path)) == WORST + WORST


def test_what_timed_out_at_a_client_that_died_counts_beside_the_answer(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path)
        await ledger.take_in_hand("a", [0])
        await ledger.push("a", wants(0), [])
        await ledger.push("a", [], [Failure(0, "timeout", lost=True)])
        await ledger.take_in_hand("b", [0])
        await ledger.push("b", wants(0), [])
        await ledger.record("b", [outcome(0)])
        assert (await ledger.take(0, 0)).spent == WORST + Tokens(4, 6)
        await ledger.close()

    within(scene())
    assert read_lost(tmp_path / SENT_FILE, journaled(tmp_path)) == WORST


def test_a_kill_at_this_moment_knows_what_may_have_to_be_paid_for(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        await ledger.allow(10)
        await ledger.push("a", wants(0, 1, 2, 3), [])
        await ledger.push("a", [], [Failure(0, "status_500"), Failure(1, "timeout", lost=True)])
        await ledger.open(tmp_path, HEADER)
        assert read_lost(tmp_path / SENT_FILE, ()) == Tokens(30, 270), "told before the file was open"
        await ledger.push("a", wants(0), [])
        assert read_lost(tmp_path / SENT_FILE, ()) == Tokens(40, 360), "before the client hears of it"
        await ledger.record("a", [outcome(2)])
        assert read_lost(tmp_path / SENT_FILE, journaled(tmp_path)) == Tokens(30, 270)

    within(scene())


def test_an_error_for_all_ends_the_run() -> None:
    async def scene() -> None:
        ledger = Ledger()
        waiting = asyncio.ensure_future(ledger.take(0, 30))
        await asyncio.sleep(0)
        error = TeacherError("wrong key")
        await ledger.fail(error)
        await ledger.fail(TeacherError("wrong key again"))
        assert (await waiting).error is error
        assert (await ledger.take(0, 0)).error is error, "the first, not what came of it"
        assert await hear(ledger, "a") == ([], "drop")

    within(scene())


def test_a_disk_that_fails_reaches_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, rows: list[Outcome]) -> None:
        raise OutputError("j: cannot be written: No space left on device")

    async def scene() -> None:
        ledger = await opened(tmp_path)
        monkeypatch.setattr(Journal, "append", full)
        with pytest.raises(OutputError, match="No space left"):
            await ledger.record("c", [outcome(0)])
        delivery = await ledger.take(0, 5)
        assert delivery.outcomes == []
        assert "No space left" in str(delivery.error)
        assert await ledger.take_in_hand("c", [0]) == {0}
        monkeypatch.undo()
        await ledger.record("c", [outcome(0)])
        assert journaled(tmp_path) == [0], "what did not count may come again"
        await ledger.close()

    within(scene())


@pytest.mark.parametrize("method", ["sent", "freed", "lost"])
def test_a_disk_that_fails_before_sending_reaches_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(self: SentLog, *_: Any) -> None:
        raise OutputError("sent.jsonl: cannot be written: No space left on device")

    async def scene() -> None:
        ledger = await opened(tmp_path)
        await ledger.take_in_hand("a", [0])
        if method != "sent":
            await ledger.push("a", wants(0), [])
        monkeypatch.setattr(SentLog, method, full)
        if method == "sent":
            await ledger.push("a", wants(0), [])
        elif method == "freed":
            await ledger.push("a", [], [Failure(0, "status_500")])
        else:
            await ledger.take_in_hand("b", [0])
        assert "No space left" in str((await ledger.take(0, 5)).error)
        granted, stopping = await hear(ledger, "a", 5)
        assert stopping == "drop"
        assert method != "sent" or not granted, "what could not be noted is not sent"

    within(scene())


def test_a_repeated_outcome_is_not_written_twice(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path)
        await ledger.record("c", [outcome(0)])
        await ledger.record("c", [outcome(0)])
        await ledger.record("d", [outcome(0), outcome(1)])
        assert len((await ledger.take(0, 0)).outcomes) == 2
        await ledger.close()

    within(scene())
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 3


def test_an_answer_that_waits_for_the_disk_is_not_taken_twice(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = Ledger()
        first = asyncio.ensure_future(ledger.record("c", [outcome(0)]))
        second = asyncio.ensure_future(ledger.record("d", [outcome(0)]))
        await asyncio.sleep(0.01)
        assert not second.done(), "durable no sooner than the first"
        await ledger.open(tmp_path, HEADER)
        await asyncio.gather(first, second)
        assert len((await ledger.take(0, 0)).outcomes) == 1
        await ledger.close()

    within(scene())
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 2


def test_a_late_answer_of_a_client_thought_dead_leaves_no_slot_taken(tmp_path: Path) -> None:
    async def scene() -> None:
        ledger = await opened(tmp_path, Terms(max_in_flight=1))
        await ledger.take_in_hand("a", [0, 1])
        await ledger.push("a", wants(0), [])
        await ledger.take_in_hand("b", [0, 1])
        await ledger.push("b", wants(0, 1), [])
        assert await hear(ledger, "b") == ([0], None)
        await ledger.record("a", [outcome(0)])
        await ledger.record("b", [outcome(0)])
        assert await hear(ledger, "b") == ([1], None)
        delivery = await ledger.take(0, 0)
        assert len(delivery.outcomes) == 1
        assert delivery.spent == WORST + Tokens(8, 12), "both were paid for"
        await ledger.close()

    within(scene())


def test_what_an_earlier_session_recorded_is_not_sent_again() -> None:
    async def scene() -> None:
        ledger = Ledger(Terms(), recorded={0, 2})
        assert await ledger.take_in_hand("a", [0, 1, 2, 3]) == {1, 3}

    within(scene())
