"""Answers of no use and connections that break, over HTTP: recorded, tried again, and paid for."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from generate_support import BOUND, TEXT, Asked, completion, scripted, teacher_at, usage_of

from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.client import Sampling
from alpaca_ray.testing.teacher import StandIn, standin


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_answer_without_any_choice_is_recorded(api: str) -> None:
    with standin(StandIn.resolve({"rate_empty": 1.0})) as server:
        asked = Asked()
        (found,) = asked.outcomes(teacher_at(server.url, api=api))
    assert (found.text, found.error, found.failures) == (None, "no_text", {"no_text": 1})
    assert found.usage["prompt_tokens"] == 5
    assert asked.failures == [], "it is an answer: nothing is sent again"


def test_a_refusal_is_recorded_in_the_models_words() -> None:
    with standin(StandIn.resolve({"rate_refusal": 1.0})) as server:
        (found,) = Asked().outcomes(teacher_at(server.url, api="chat"))
    assert (found.text, found.error, found.failures) == (None, "refusal", {"refusal": 1})
    assert found.message == "That is something I do not help with."
    assert found.usage


def test_an_answer_withheld_by_a_filter_is_a_refusal() -> None:
    reply = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    with scripted((200, reply)) as server:
        (found,) = Asked().outcomes(teacher_at(server.url, api="chat"))
    assert (found.error, found.message) == ("refusal", "withheld by the endpoint's content filter")


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": [], "usage": None},
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [{"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}]},
    ],
)
def test_an_answer_without_text_or_usage_counts_in_full(reply: Any) -> None:
    """A reasoning model may have thought to the last token."""
    with scripted((200, reply)) as server:
        (found,) = Asked().outcomes(teacher_at(server.url))
    assert (found.text, found.error, found.usage) == (None, "no_text", {})
    assert found.estimated == usage_of(Tokens(BOUND, 500))


def test_an_answer_without_usage_is_estimated_by_its_bytes() -> None:
    with standin(StandIn.resolve({"rate_no_usage": 1.0})) as server:
        (found,) = Asked().outcomes(teacher_at(server.url), sampling=Sampling({}, 100_000))
        (short,) = Asked().outcomes(teacher_at(server.url), sampling=Sampling({}, 100))
    assert found.text
    assert (found.usage, found.estimated) == ({}, usage_of(Tokens(BOUND, len(found.text.encode()))))
    assert short.estimated == usage_of(Tokens(BOUND, 100)), "no more than was allowed"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>busy</html>",
        b"{",
        b"[]",
        b"7",
        b'"x"',
        b"null",
        {"choices": "x"},
        {"choices": ["x"]},
        {"choices": [{"message": "x"}]},
        completion(["x"]),
        completion("x", usage={"prompt_tokens": "5"}),
        completion("x", usage=[1]),
    ],
)
def test_an_answer_of_another_form_is_tried_again_and_counts_in_full(content: Any) -> None:
    asked = Asked()
    with scripted((200, content), (200, completion("x"))) as server:
        (found,) = asked.outcomes(teacher_at(server.url))
    assert (found.text, found.failures) == ("x", {"bad_answer": 1})
    assert found.lost == usage_of(Tokens(BOUND, 500)), "the endpoint may charge for it"
    assert [(failure.kind, failure.lost) for failure in asked.failures] == [("bad_answer", True)]


@pytest.mark.usefixtures("impatient")
def test_json_that_breaks_off() -> None:
    with standin(StandIn.resolve({"rate_truncated_json": 1.0})) as server:
        (found,) = Asked().outcomes(teacher_at(server.url), max_retries=2)
    assert (found.text, found.error, found.failures) == (None, "bad_answer", {"bad_answer": 3})
    assert found.lost == usage_of(Tokens(3 * BOUND, 1500))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["rate_drop", "rate_drop_body"])
def test_a_connection_that_breaks_after_the_request_left_may_have_to_be_paid_for(fault: str) -> None:
    asked = Asked()
    with standin(StandIn.resolve({fault: 1.0})) as server:
        (found,) = asked.outcomes(teacher_at(server.url), max_retries=1)
        assert sum(server.prompts.values()) == 2
    assert (found.error, found.failures) == ("connection", {"connection": 2})
    assert found.lost == usage_of(Tokens(2 * BOUND, 1000))
    assert [failure.lost for failure in asked.failures] == [True, True]
    assert found.message


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_never_came_about_costs_nothing() -> None:
    asked = Asked()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (found,) = asked.outcomes(teacher_at(f"http://127.0.0.1:{unused.getsockname()[1]}/v1"), max_retries=1)
    assert (found.error, found.failures, found.lost) == ("connection", {"connection": 2}, {})
    assert [failure.lost for failure in asked.failures] == [False, False]
    assert "111" in (found.message or "") or "refused" in (found.message or "").lower()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("settings", [{"latency": 30.0}, {"rate_drip": 1.0, "drip": 0.05}])
def test_an_attempt_takes_no_longer_than_its_time(settings: dict[str, Any]) -> None:
    """Also where the answer comes byte by byte, so that something arrives all the time."""
    asked = Asked()
    with standin(StandIn.resolve(settings)) as server:
        (found,) = asked.outcomes(teacher_at(server.url), timeout=0.4, max_retries=1)
    assert (found.error, found.failures) == ("timeout", {"timeout": 2})
    assert found.lost == usage_of(Tokens(2 * BOUND, 1000))
    assert [failure.lost for failure in asked.failures] == [True, True]


@pytest.mark.usefixtures("impatient")
def test_what_an_answer_lost_before_it_came_is_in_its_outcome() -> None:
    asked = Asked()
    with standin(StandIn.resolve({"rate_drop": 0.5, "seed": 5})) as server:
        found = asked.outcomes(teacher_at(server.url), *[f"{number} {TEXT}" for number in range(10)])
    lost = sum(outcome.lost.get("completion_tokens", 0) for outcome in found)
    assert lost == 500 * sum(failure.lost for failure in asked.failures) == 500 * server.statuses[0] > 0
    assert all(outcome.text and outcome.usage for outcome in found)
