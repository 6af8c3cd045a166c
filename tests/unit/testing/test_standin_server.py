"""The stand-in over real HTTP: each way to fail looks to a client as it does with a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

PROMPT = "###\n4. Instruction:"
SCHEMA = {
    "type": "object",
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in ("instruction", "input", "output")},
            },
        }
    },
}


@contextmanager
def serving(**given: Any) -> Iterator[tuple[StandInServer, httpx.Client]]:
    with standin(StandIn.resolve(given)) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        yield server, client


def post(client: httpx.Client, prompt: str = PROMPT, *, chat: bool = False, **fields: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": "stand-in", **fields}
    if chat:
        return client.post("/chat/completions", json={**body, "messages": [{"role": "user", "content": prompt}]})
    return client.post("/completions", json={**body, "prompt": prompt})


def stats(client: httpx.Client, query: str = "") -> Any:
    return client.get(str(client.base_url).replace("/v1/", f"/stats{query}")).json()


@pytest.mark.parametrize(("rate", "status"), [("rate_429", 429), ("rate_500", 500), ("rate_503", 503)])
def test_errors_by_status(rate: str, status: int) -> None:
    with serving(**{rate: 1.0, "retry_after": 1.5}) as (server, client):
        reply = post(client)
        assert reply.status_code == status
        assert reply.json()["error"]["message"]
        assert reply.headers.get("retry-after") == (None if status == 500 else "1.5")
        assert (server.statuses, server.faults) == ({status: 1}, {rate.removeprefix("rate_"): 1})


def test_a_429_without_and_with_the_other_header() -> None:
    with serving(rate_429=1.0) as (_, client):
        assert not {"retry-after", "retry-after-ms"} & set(post(client).headers)
    with serving(rate_429=1.0, retry_after=1.5, retry_after_form="ms") as (_, client):
        assert post(client).headers["retry-after-ms"] == "1500"


def test_dropped_before_and_in_the_body() -> None:
    with serving(rate_drop=1.0) as (server, client):
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            post(client)
        assert server.statuses == {0: 1}
    with serving(rate_drop_body=1.0) as (server, client):
        with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete message body|closed connection"):
            post(client)
        assert (server.statuses, server.faults) == ({0: 1}, {"drop_body": 1})
        assert not server.answered


def test_a_slow_drip_outlasts_the_clients_patience() -> None:
    with serving(rate_drip=1.0, drip=0.5) as (server, client):
        request = client.build_request(
            "POST", "/completions", json={"model": "stand-in", "prompt": PROMPT}, timeout=0.2
        )
        reply = client.send(request, stream=True)
        assert reply.status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            reply.read()
        reply.close()
        wait_for(lambda: server.statuses[-1] == 1)
        assert not server.answered
    with serving(rate_drip=1.0, drip=0.0) as (server, client):
        assert post(client).json()["choices"]
        assert server.statuses[200] == 1


def test_half_a_body_in_a_whole_reply() -> None:
    with serving(rate_truncated_json=1.0) as (server, client):
        reply = post(client)
        assert reply.status_code == 200
        with pytest.raises(json.JSONDecodeError):
            reply.json()
        assert (server.statuses, dict(server.answered)) == ({200: 1}, {})


def test_answers_that_are_no_use() -> None:
    with serving(rate_length=1.0) as (_, client):
        (choice,) = post(client).json()["choices"]
        assert choice["finish_reason"] == "length"
    with serving() as (_, client):
        whole = post(client).json()["choices"][0]
        assert (whole["finish_reason"], whole["text"].startswith(choice["text"])) == ("stop", True)
        assert len(choice["text"]) < len(whole["text"])
    with serving(rate_refusal=1.0) as (_, client):
        (choice,) = post(client, chat=True).json()["choices"]
        assert choice["message"]["content"] is None
        assert choice["message"]["refusal"]
        assert post(client).json()["choices"][0]["text"] == choice["message"]["refusal"]
    with serving(rate_filtered=1.0) as (_, client):
        (choice,) = post(client).json()["choices"]
        assert (choice["finish_reason"], whole["text"].startswith(choice["text"])) == ("content_filter", True)
        assert len(choice["text"]) < len(whole["text"])
    with serving(rate_empty=1.0) as (_, client):
        assert post(client).json()["choices"] == []
    with serving(rate_no_usage=1.0) as (_, client):
        assert "usage" not in post(client).json()


def test_faults_follow_from_seed_prompt_and_attempt() -> None:
    def outcomes(seed: int) -> list[int]:
        with serving(rate_429=0.3, rate_500=0.2, rate_503=0.2, seed=seed) as (_, client):
            return [post(client, f"{number} {PROMPT}").status_code for number in range(6) for _ in range(4)]

    first = outcomes(1)
    assert first == outcomes(1) != outcomes(2)
    assert set(first) == {200, 429, 500, 503}
    assert any(len(set(first[place : place + 4])) > 1 for place in range(0, 24, 4)), "attempts differ"


def test_rate_limits_are_enforced_and_told() -> None:
    with serving(requests_per_minute=3, tasks=1) as (server, client):
        replies = [post(client, f"{number} {PROMPT}") for number in range(5)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0", "0"]
        assert 50 < float(replies[3].headers["retry-after"]) <= 60
        assert server.faults == {"limit": 2}
        assert stats(client)["most_in_60_seconds"] == 5


@pytest.mark.parametrize(("counted", "statuses"), [("asked", [200, 429]), ("used", [200, 200])])
def test_tokens_a_minute_by_what_is_asked_or_used(counted: str, statuses: list[int]) -> None:
    with serving(tokens_per_minute=1000, tokens_counted=counted, tasks=1) as (_, client):
        found = [post(client, f"{number} {PROMPT}", max_tokens=600).status_code for number in range(2)]
        assert found == statuses


def test_concurrent_requests_are_capped() -> None:
    with serving(max_concurrent=2, latency=0.6) as (server, client):
        threads = [threading.Thread(target=post, args=(client, f"{number} {PROMPT}")) for number in range(2)]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.arrivals.at_once == 2)
        assert post(client, "one more " + PROMPT).status_code == 429
        for thread in threads:
            thread.join()
        assert server.statuses == {429: 1, 200: 2}
        assert server.most_at_once == 3


def test_a_client_that_goes_away_leaves_its_slot_at_once() -> None:
    with serving(latency=30.0) as (server, client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/completions", json={"model": "stand-in", "prompt": PROMPT}, timeout=0.2)
        wait_for(lambda: server.arrivals.at_once == 0 and server.statuses[-1] == 1)
        assert not server.answered


def test_stats_tell_what_was_asked() -> None:
    with serving(latency=0.05, remember=False) as (server, client):
        for _ in range(2):
            post(client)
        post(client, "other " + PROMPT)
        found = stats(client, "?at_least=1")
        assert (found["attempts"], found["prompts"], found["answered"]) == (3, 2, 3)
        assert (found["answered_more_than_once"], found["statuses"]) == (1, {"200": 3})
        assert (found["most_at_once"], found["arrivals"], found["arrivals_per_minute"]) == (1, 3, [3])
        assert 0 < found["share_at_least"] <= 1
        assert found["tokens"]["prompt"] == 2 * -(-len(PROMPT) // 4) + -(-len("other " + PROMPT) // 4)
        assert found["tokens"]["completion"] > found["tokens"]["prompt"]
        assert server.seen == []
        assert PROMPT not in server.prompts, "digests only"


def test_what_was_asked_is_remembered_where_that_is_set() -> None:
    with serving() as (server, client):
        post(client, temperature=0.5)
        post(client, chat=True)
        assert [body.get("temperature") for body in server.seen] == [0.5, None]
        assert server.prompts == {PROMPT: 2}


def test_an_answer_ends_at_the_first_of_its_stops() -> None:
    with serving(bad_tasks=False) as (_, client):
        whole = post(client).json()["choices"][0]["text"]
        for stop in ("\n6.", ["\n7.", "\n6."], ["\n6.", "\n7.", "nowhere"]):
            assert post(client, stop=stop).json()["choices"][0]["text"] == whole.split("\n6.")[0]


def test_an_evolved_task_sometimes_leaks_its_prompt() -> None:
    for bad, leaks in ((True, True), (False, False)):
        with serving(bad_tasks=bad) as (_, client):
            prompts = (f"Make it harder: {number}.\n1. Instruction:" for number in range(120))
            texts = [post(client, prompt).json()["choices"][0]["text"] for prompt in prompts]
            assert any("Rewritten prompt:" in text for text in texts) == leaks


def test_a_reasoning_model_refuses_parameters_one_by_one() -> None:
    with serving(reasoning=True, think_tokens=40, bad_tasks=False) as (server, client):
        first = post(client, chat=True, max_tokens=500, temperature=1.0)
        assert first.status_code == 400
        error = first.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "max_tokens")
        assert "Unsupported parameter" in error["message"]
        assert "max_completion_tokens" in error["message"]
        second = post(client, chat=True, max_completion_tokens=500, temperature=1.0)
        assert second.json()["error"]["param"] == "temperature"
        found = post(client, chat=True, max_completion_tokens=5000).json()
        text = found["choices"][0]["message"]["content"]
        thought, _, said = text.partition("</think>")
        assert text.startswith("<think>")
        assert "4. Output:" in said
        usage = found["usage"]
        assert (
            usage["completion_tokens_details"]
            == {"reasoning_tokens": 40}
            == {"reasoning_tokens": -(-len(thought + "</think>\n") // 4)}
        )
        assert usage["completion_tokens"] == -(-len(text) // 4)
        short = post(client, chat=True, max_completion_tokens=20).json()
        assert short["choices"][0]["finish_reason"] == "length"
        assert "</think>" not in short["choices"][0]["message"]["content"]
        assert short["usage"]["completion_tokens"] == 20
        assert server.statuses[400] == 2


def test_a_schema_is_filled_with_tasks() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "t", "strict": True, "schema": SCHEMA}}
    with serving(bad_tasks=False, tasks=3) as (_, client):
        text = post(client, "Make some tasks.", chat=True, response_format=wanted).json()["choices"][0]["message"]
        tasks = json.loads(text["content"])["tasks"]
        assert [set(task) for task in tasks] == [{"instruction", "input", "output"}] * 3
        assert all(task["instruction"] and task["output"] for task in tasks)
        single = {**wanted, "json_schema": {"name": "one", "schema": SCHEMA["properties"]["tasks"]["items"]}}  # type: ignore[index]
        text = post(client, "Make one.", chat=True, response_format=single).json()["choices"][0]["message"]
        assert set(json.loads(text["content"])) == {"instruction", "input", "output"}


def test_a_prompt_for_a_first_task_gets_one() -> None:
    with serving(bad_tasks=False) as (_, client):
        text = post(client, "Make this harder.\n###\n1. Instruction:").json()["choices"][0]["text"]
        assert text.count("Output:") == 1
        assert "1. Output:" in text
        assert post(client).json()["choices"][0]["text"].count("Output:") == 6


@pytest.mark.parametrize("tokens", [30, 2000])
def test_answers_have_the_length_that_is_set(tokens: int) -> None:
    with serving(answer_tokens=[tokens]) as (_, client):
        found = post(client).json()
        assert (found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]) == (tokens, "stop")
        cut = post(client, max_tokens=25).json()
        assert (cut["usage"]["completion_tokens"], cut["choices"][0]["finish_reason"]) == (25, "length")
        assert post(client, max_tokens=tokens).json()["choices"][0] == found["choices"][0], "it fits exactly"
    with serving(answer_tokens=[10, 3000]) as (_, client):
        lengths = {post(client, f"{number} {PROMPT}").json()["usage"]["completion_tokens"] for number in range(12)}
        assert len(lengths) > 8
        assert 10 <= min(lengths) < 1000 < 2000 < max(lengths) <= 3000


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"model": "stand-in"}', 400), (b'{"model": "x", "prompt": "y"}', 404)],
)
def test_what_is_no_request(content: bytes, status: int) -> None:
    with serving() as (server, client):
        assert client.post("/completions", content=content).status_code == status
        assert server.statuses == {status: 1}
        assert client.post("/nowhere", content=content).status_code == 404
        assert post(client, stream=True).json()["error"]["param"] == "stream"


def wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not come to be")
