"""One request to the teacher, over HTTP: what is sent, tries and waits, and how it stops."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from email.utils import formatdate
from typing import Any

import pytest
from generate_support import BOUND, TEXT, Asked, completion, scripted, teacher_at

from alpaca_ray.generate.admission import Failure, Grant, Want
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.client import Sampling, TeacherClient
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.prompt import Prompt
from alpaca_ray.generate.verdict import retry_after
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_answer_is_taken_with_its_usage(api: str) -> None:
    asked = Asked()
    with standin(StandIn.resolve({"bad_tasks": False})) as server:
        (found,) = asked.outcomes(teacher_at(server.url, api=api))
        assert found.text
        assert "4. Input:" in found.text
        assert (found.finish_reason, found.error, found.failures, found.model) == ("stop", None, {}, "stand-in")
        assert (found.seed_ids, found.prompt_sha) == (["a"], Prompt(0, ["a"], TEXT).digest)
        assert found.usage["prompt_tokens"] == 5
        assert found.usage["completion_tokens"] > 50
        assert found.estimated == found.lost == {}
        (cut,) = Asked().outcomes(teacher_at(server.url, api=api), sampling=Sampling({}, 10))
        assert (cut.finish_reason, len(cut.text or "")) == ("length", 40)
    assert asked.wants == [Want(0, Tokens(BOUND, 500))]
    assert asked.failures == []


def test_what_is_sent() -> None:
    with scripted((200, completion("x"))) as server:
        sampling = Sampling({"temperature": 0.5, "stop": ["a"]}, 9, {"reasoning_effort": "low", "temperature": 0.1})
        Asked().outcomes(teacher_at(server.url), "p", sampling=sampling, environ={"KEY": "secret"})
        Asked().outcomes(teacher_at(server.url, api="chat"), "p", sampling=Sampling({}, 9, send_length=False))
    assert server.bodies == [
        {
            "model": "stand-in",
            "prompt": "p",
            "max_tokens": 9,
            "temperature": 0.1,
            "stop": ["a"],
            "reasoning_effort": "low",
        },
        {"model": "stand-in", "messages": [{"role": "user", "content": "p"}]},
    ]
    keys = [{name.lower(): value for name, value in headers.items()}["authorization"] for headers in server.headers]
    assert keys == ["Bearer secret", "Bearer none"]


@pytest.mark.usefixtures("impatient")
def test_passing_errors_are_tried_again_and_counted() -> None:
    asked = Asked()
    settings = StandIn.resolve({"rate_429": 0.2, "rate_500": 0.2, "rate_503": 0.1, "rate_drop": 0.2, "seed": 3})
    with standin(settings) as server:
        texts = [f"{number} {TEXT}" for number in range(40)]
        found = asked.outcomes(teacher_at(server.url), *texts, max_retries=30)
    assert all(outcome.error is None and outcome.text for outcome in found)
    failures = sum((Counter(outcome.failures) for outcome in found), Counter())
    assert failures == {
        "rate_limit": server.statuses[429],
        "status_500": server.statuses[500],
        "status_503": server.statuses[503],
        "connection": server.statuses[0],
    }
    assert min(failures.values()) > 0
    assert Counter(failure.kind for failure in asked.failures) == failures, "each is reported before the next try"
    assert len(asked.wants) == 40 + len(asked.failures), "each try asks for permission"


@pytest.mark.usefixtures("impatient")
def test_retries_are_bounded_and_the_outcome_says_why() -> None:
    with standin(StandIn.resolve({"rate_500": 1.0})) as server:
        (found,) = Asked().outcomes(teacher_at(server.url), max_retries=3)
    assert (found.text, found.error, found.failures) == (None, "status_500", {"status_500": 4})
    assert found.message == "The server had an error."
    assert (found.usage, found.estimated, found.lost) == ({}, {}, {})
    assert server.statuses[500] == 4


@pytest.mark.usefixtures("waits")
def test_rate_limits_do_not_count_as_retries() -> None:
    limited = (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}})
    with scripted(*[limited] * 20, (500, {}), (200, completion("x"))) as server:
        (found,) = Asked().outcomes(teacher_at(server.url), max_retries=1)
    assert (found.text, found.failures) == ("x", {"rate_limit": 20, "status_500": 1})
    assert len(server.bodies) == 22


@pytest.mark.parametrize("form", ["seconds", "date", "ms"])
def test_retry_after_delays_the_request_that_got_it(waits: list[float], form: str) -> None:
    asked = Asked()
    settings = {"rate_503": 1.0, "retry_after": 37, "retry_after_form": form, "seed": 1}
    with standin(StandIn.resolve(settings)) as server:
        asked.outcomes(teacher_at(server.url), max_retries=1)
    (between,) = waits
    assert 36 <= between <= 39
    assert [failure.retry_after is not None for failure in asked.failures] == [True, True]


def test_other_requests_do_not_wait_with_it(waits: list[float]) -> None:
    limited = (429, {"error": {"message": "slow down"}}, {"retry-after": "37"})
    with scripted(limited, (200, completion("x"))) as server:
        asked = Asked()
        asked.outcomes(teacher_at(server.url), "a", "b", "c")
    assert len(server.bodies) == 4
    assert [wait for wait in waits if wait >= 37] == [37.0]
    assert [(failure.kind, failure.retry_after) for failure in asked.failures] == [("rate_limit", 37.0)]


def test_waits_grow_and_are_bounded(waits: list[float]) -> None:
    with scripted((500, {})) as server:
        Asked().outcomes(teacher_at(server.url), max_retries=12)
    assert len(waits) == 12
    for number, wait in enumerate(waits):
        assert min(60.0, 0.5 * 2**number) / 2 <= wait <= min(60.0, 0.5 * 2**number)


def test_a_grants_time_is_waited_for(waits: list[float]) -> None:
    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=time.time() + 25)

    with scripted((200, completion("x"))) as server:
        (found,) = Asked(grant).outcomes(teacher_at(server.url))
    (wait,) = waits
    assert 24 < wait <= 25
    assert found.seconds < 20, "the wait for a place is none of the teacher's"


@pytest.mark.parametrize("late", [0.25, 5.0, 86_400.0])
def test_a_request_that_is_held_up_gives_its_place_back(waits: list[float], late: float) -> None:
    """Many that could not leave at their times would leave together, above the limit."""

    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=time.time() + (-late if len(asked.wants) <= 3 else 60.0))

    asked = Asked(grant)
    with scripted((200, completion("x"))) as server:
        (found,) = asked.outcomes(teacher_at(server.url))
    assert (found.text, found.failures) == ("x", {})
    assert asked.failures == [Failure(0, "not_sent")] * 3
    assert len(asked.wants) == 4
    assert len(server.bodies) == 1
    assert len(waits) == 1, "it asks again at once, and waits for its new time"
    assert found.lost == {}


def test_a_request_that_oversleeps_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is late only after it has waited for its time: something else held the loop meanwhile."""
    behind = [0.5, 0.0]

    async def pause(self: TeacherClient, seconds: float) -> bool:
        woken = due + behind.pop(0)
        monkeypatch.setattr("alpaca_ray.generate.client.time.time", lambda: woken)
        return True

    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=due)

    due = time.time() + 3600
    monkeypatch.setattr(TeacherClient, "_pause", pause)
    asked = Asked(grant)
    with scripted((200, completion("x"))) as server:
        (found,) = asked.outcomes(teacher_at(server.url))
    assert (found.text, asked.failures, len(server.bodies)) == ("x", [Failure(0, "not_sent")], 1)


def test_a_little_late_is_sent(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=noon - 0.15)

    noon = time.time()
    asked = Asked(grant)
    with scripted((200, completion("x"))) as server:
        monkeypatch.setattr("alpaca_ray.generate.client.time.time", lambda: noon)
        (found,) = asked.outcomes(teacher_at(server.url))
    assert (found.text, asked.failures, waits) == ("x", [], [])


def test_a_grant_without_a_time_is_never_late() -> None:
    asked = Asked()
    with scripted((200, completion("x"))) as server:
        asked.outcomes(teacher_at(server.url))
    assert (len(asked.wants), asked.failures, len(server.bodies)) == (1, [], 1)


def test_a_machine_that_is_always_late_still_sends() -> None:
    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=time.time() - 5.0)

    asked = Asked(grant)
    with scripted((200, completion("x"))) as server:
        (found,) = asked.outcomes(teacher_at(server.url))
    assert (found.text, found.failures, found.error) == ("x", {}, None)
    assert asked.failures == [Failure(0, "not_sent")] * 10
    assert len(server.bodies) == 1


def test_a_late_grant_is_no_retry() -> None:
    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=time.time() - (5.0 if len(asked.wants) <= 5 else 0.0))

    asked = Asked(grant)
    with scripted((500, {})) as server:
        (found,) = asked.outcomes(teacher_at(server.url), max_retries=0)
    assert found.failures == {"status_500": 1}
    assert [failure.kind for failure in asked.failures] == ["not_sent"] * 5 + ["status_500"]
    assert len(server.bodies) == 1


def test_a_grant_names_the_endpoint() -> None:
    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, want.request_id % 2)

    with scripted((200, completion("first"))) as first, scripted((200, completion("second"))) as second:
        teachers = [teacher_at(first.url, model="m"), teacher_at(second.url, model="n", key_env="OTHER")]
        found = Asked(grant).outcomes(teachers, "a", "b", "c", environ={"OTHER": "k"})
    assert [(outcome.text, outcome.model) for outcome in found] == [("first", "m"), ("second", "n"), ("first", "m")]
    assert [body["model"] for body in first.bodies + second.bodies] == ["m", "m", "n"]


def drained(settings: dict[str, Any], *, wait: float = 0.0) -> tuple[list[Outcome | None], list[Failure], Counter[str]]:
    """Ask, drain the client while the first request is under way (or waits for its turn), and ask once more."""

    async def scene(server: StandInServer) -> list[Outcome | None]:
        client = TeacherClient(
            [teacher_at(server.url)], {"completions": Sampling({}, 500)}, {}, timeout=30.0, max_retries=8
        )
        under_way = asyncio.ensure_future(client.ask(Prompt(0, [], TEXT), asked.permit, asked.failed))
        while not (server.prompts or (wait and asked.wants)):
            await asyncio.sleep(0.01)
        client.drain()
        try:
            return [await under_way, await client.ask(Prompt(1, [], f"late {TEXT}"), asked.permit, asked.failed)]
        finally:
            await client.close()

    async def grant(want: Want) -> Grant:
        return Grant(want.request_id, 0, at=time.time() + wait if wait else 0.0)

    asked = Asked(grant)
    with standin(StandIn.resolve(settings)) as server:
        return asyncio.run(asyncio.wait_for(scene(server), 60)), asked.failures, server.prompts


def test_a_drained_client_takes_what_is_under_way() -> None:
    (first, late), failures, prompts = drained({"latency": 0.3})
    assert first is not None
    assert first.text
    assert late is None
    assert failures == [Failure(1, "not_sent")]
    assert sum(prompts.values()) == 1


def test_a_drained_client_tries_nothing_again() -> None:
    outcomes, failures, prompts = drained({"latency": 0.3, "rate_429": 1.0, "retry_after": 3600})
    assert outcomes == [None, None]
    assert [failure.kind for failure in failures] == ["rate_limit", "not_sent"]
    assert sum(prompts.values()) == 1


def test_a_drained_client_gives_back_what_it_has_not_sent() -> None:
    outcomes, failures, prompts = drained({}, wait=3600.0)
    assert outcomes == [None, None]
    assert failures == [Failure(0, "not_sent"), Failure(1, "not_sent")]
    assert not prompts


def test_no_permission_is_no_outcome() -> None:
    async def grant(want: Want) -> None:
        return None

    asked = Asked(grant)
    with scripted((200, completion("x"))) as server:
        assert asked.outcomes(teacher_at(server.url), "a", "b") == []
    assert (server.bodies, asked.failures) == ([], [])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after-ms": "300", "retry-after": "9"}, 0.3),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_forms_of_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(("ahead", "low", "high"), [(3600, 3000, 3600), (-60, 0, 0)])
def test_retry_after_as_a_date(ahead: float, low: float, high: float) -> None:
    # The date is made here: a parameter would be made at collection, many minutes before a long run comes to it.
    found = retry_after({"retry-after": formatdate(time.time() + ahead, usegmt=True)})
    assert found is not None
    assert low <= found <= high
