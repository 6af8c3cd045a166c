"""What an endpoint refuses, over HTTP: what is learnt from it, and what stops the run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from generate_support import TEXT, Asked, completion, scripted, teacher_at

from alpaca_ray.errors import TeacherError
from alpaca_ray.generate.client import Sampling, TeacherClient
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.prompt import Prompt
from alpaca_ray.testing.teacher import StandIn, standin


def refusing(message: str, code: str | None = None, status: int = 400) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def test_a_reasoning_teacher_is_asked_as_it_wants() -> None:
    asked = Asked()
    with standin(StandIn.resolve({"reasoning": True})) as server:
        found = asked.outcomes(teacher_at(server.url, api="chat"), "a", "b", "c", sampling=Sampling({}, 2000))
        sizes = [("max_tokens" in body, body.get("max_completion_tokens")) for body in server.seen]
    assert all(outcome.error is None and "</think>" in (outcome.text or "") for outcome in found)
    assert all(outcome.failures == {} and outcome.lost == {} for outcome in found), "to learn is no failure"
    assert set(sizes) <= {(True, None), (False, 2000)}
    assert {failure.kind for failure in asked.failures} == {"length_parameter"}
    assert not any(failure.lost for failure in asked.failures)


def test_a_reasoning_teacher_that_takes_no_temperature_says_what_to_leave_out() -> None:
    with standin(StandIn.resolve({"reasoning": True})) as server:
        teacher = teacher_at(server.url, api="chat")
        with pytest.raises(TeacherError, match=r"400: Unsupported parameter.*'temperature'.*see --drop_params"):
            Asked().outcomes(teacher)
    with standin(StandIn.resolve({"refuse_params": ["top_p"]})) as server:
        with pytest.raises(TeacherError, match=r"400: Unsupported parameter.*'top_p'.*see --drop_params"):
            Asked().outcomes(teacher_at(server.url), sampling=Sampling({"top_p": 1.0}, 500))
        assert Asked().outcomes(teacher_at(server.url), sampling=Sampling({}, 500))[0].text


def test_an_endpoint_learns_the_length_parameter_once() -> None:
    refusal = refusing("Use 'max_completion_tokens' instead.", "unsupported_parameter")
    with scripted(refusal, (200, completion("x"))) as server:

        async def scene() -> None:
            client = TeacherClient(
                [teacher_at(server.url)], {"completions": Sampling({}, 50)}, {}, timeout=30.0, max_retries=0
            )
            for number in range(3):
                await client.ask(Prompt(number, [], "p"), asked.permit, asked.failed)
            await client.close()

        asked = Asked()
        asyncio.run(scene())
    assert ["max_tokens" in body for body in server.bodies] == [True, False, False, False]


TOO_LONG = refusing("This model's maximum context length is 4097 tokens, however you requested 5000 tokens")


def test_a_request_that_is_too_long_asks_for_less() -> None:
    asked = Asked()
    with scripted(*[TOO_LONG] * 3, (200, completion("x"))) as server:
        (found,) = asked.outcomes(teacher_at(server.url), sampling=Sampling({}, 1000), max_retries=0)
    assert [body["max_tokens"] for body in server.bodies] == [1000, 800, 640, 512]
    assert [want.worst.completion for want in asked.wants] == [1000, 800, 640, 512]
    assert (found.text, found.failures) == ("x", {"too_long": 3})


def test_a_prompt_that_is_too_long_in_itself_is_recorded() -> None:
    with scripted(TOO_LONG) as server:
        (found,) = Asked().outcomes(teacher_at(server.url), sampling=Sampling({}, 100))
    assert [body["max_tokens"] for body in server.bodies] == [100, 80, 64]
    assert (found.error, found.failures) == ("too_long", {"too_long": 3})
    assert "maximum context length" in (found.message or "")


@pytest.mark.usefixtures("waits")
def test_asking_for_less_is_no_retry() -> None:
    with scripted(*[TOO_LONG] * 9, (500, {}), (200, completion("x"))) as server:
        (found,) = Asked().outcomes(teacher_at(server.url), sampling=Sampling({}, 3072), max_retries=1)
    assert (found.text, found.failures) == ("x", {"too_long": 9, "status_500": 1})


def test_a_wrong_key_or_model_stops_with_the_servers_words() -> None:
    with standin(StandIn.resolve({"key": "right"})) as server:
        with pytest.raises(TeacherError, match=r"127\.0\.0\.1.*401: Incorrect API key provided.*\$KEY"):
            Asked().outcomes(teacher_at(server.url), environ={"KEY": "wrong"})
        with pytest.raises(TeacherError, match=r"404: The model 'other' does not exist.*--model_name"):
            Asked().outcomes(teacher_at(server.url, model="other"), environ={"KEY": "right"})
        assert Asked().outcomes(teacher_at(server.url), environ={"KEY": "right"})[0].text
        assert server.statuses[401] == server.statuses[404] == 1, "it is not tried again"


def test_a_used_up_account_stops_the_run() -> None:
    with scripted(refusing("You exceeded your current quota.", "insufficient_quota", 429)) as server:
        with pytest.raises(TeacherError, match="429: You exceeded your current quota"):
            Asked().outcomes(teacher_at(server.url))
        assert len(server.bodies) == 1


def test_a_refused_request_stops_the_run_only_where_nothing_has_been_answered() -> None:
    bad = refusing("The prompt holds what this model cannot read.")
    with scripted(bad) as server, pytest.raises(TeacherError, match="400: The prompt holds what"):
        Asked().outcomes(teacher_at(server.url))
    with scripted((200, completion("x")), bad) as server:

        async def scene() -> list[Outcome | None]:
            client = TeacherClient(
                [teacher_at(server.url)], {"completions": Sampling({}, 50)}, {}, timeout=30.0, max_retries=3
            )
            found = [await client.ask(Prompt(number, [], "p"), asked.permit, asked.failed) for number in range(2)]
            await client.close()
            return found

        asked = Asked()
        first, second = asyncio.run(scene())
    assert first is not None
    assert second is not None
    assert (first.text, second.text, second.error) == ("x", None, "status_400")
    assert second.message == "The prompt holds what this model cannot read."
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"detail": "Not Found"}, "404: Not Found"),
        ({"error": "no such route"}, "404: no such route"),
        ({"message": "nothing here"}, "404: nothing here"),
        (b"<html>\n<body> nothing\n here</body>", "404: .*<html> <body> nothing here"),
        (b"", "404: "),
    ],
)
def test_words_of_servers_that_are_not_openai(content: Any, words: str) -> None:
    with scripted((404, content)) as server, pytest.raises(TeacherError, match=words) as raised:
        Asked().outcomes(teacher_at(server.url))
    assert "\n" not in str(raised.value)


def test_answers_depend_on_seed_and_prompt_alone() -> None:
    texts = []
    for seed in (0, 0, 1):
        with standin(StandIn.resolve({"seed": seed})) as server:
            found = Asked().outcomes(teacher_at(server.url), f"a {TEXT}", f"b {TEXT}")
            texts.append([outcome.text for outcome in found])
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
