"""What the stand-in refuses: a request that a real server would answer 400 is answered 400, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

PROMPT = "###\n4. Instruction:"


class Client:
    """A stand-in and a connection to it; ``ask`` returns status and body."""

    def __init__(self, server: StandInServer, http: httpx.Client) -> None:
        self.server = server
        self._http = http

    def ask(self, chat: bool, **fields: Any) -> tuple[int, Any]:
        asked = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
        return self.post(chat, json={"model": "stand-in", **asked, **fields})

    def post(self, chat: bool, **content: Any) -> tuple[int, Any]:
        reply = self._http.post("/v1/chat/completions" if chat else "/v1/completions", **content)
        return reply.status_code, reply.json()

    def stats(self, query: str) -> tuple[int, Any]:
        reply = self._http.get(f"/stats?{query}")
        return reply.status_code, reply.json()


@pytest.fixture(scope="module")
def served() -> Iterator[Client]:
    with standin() as server, httpx.Client(base_url=server.url.removesuffix("/v1"), trust_env=False) as http:
        yield Client(server, http)


@pytest.fixture
def client(served: Client) -> Client:
    served.server.statuses.clear()
    served.server.prompts.clear()
    return served


def schema(content: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "t", "schema": content}}


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"max_tokens": "abc"}, "max_tokens", "invalid_type", "an integer, not a text"),
        ({"max_tokens": 5.0}, "max_tokens", "invalid_type", "an integer, not a number"),
        ({"max_tokens": True}, "max_tokens", "invalid_type", "an integer, not a boolean"),
        ({"max_tokens": -5}, "max_tokens", "invalid_value", "from 1 to"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value", "from 1 to"),
        ({"temperature": 2.1}, "temperature", "invalid_value", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "invalid_type", "a number, not a text"),
        ({"top_p": -0.1}, "top_p", "invalid_value", "from 0 to 1"),
        ({"n": 3}, "n", "unsupported_value", "'n' must be 1"),
        ({"n": 0}, "n", "invalid_value", "from 1 to"),
        ({"stop": 5}, "stop", "invalid_type", "a text or a list of texts"),
        ({"stop": ["a", 5]}, "stop", "invalid_type", "a text or a list of texts"),
        ({"stop": ["a", ""]}, "stop", "invalid_value", "none of them empty"),
        ({"stop": list("abcde")}, "stop", "invalid_value", "at most 4"),
        ({"response_format": "x"}, "response_format", "invalid_type", "an object, not a text"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "one of text"),
        ({"response_format": {"type": ["text"]}}, "response_format.type", "invalid_value", "one of text"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.name",
            "missing_required_parameter",
            "a text",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "t"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
            "an object",
        ),
        *(
            ({"response_format": schema(content)}, "response_format.json_schema.schema", "invalid_value", words)
            for content, words in (
                ({}, "schema.type must be one of"),
                ({"type": "text"}, "schema.type must be one of"),
                ({"type": "object", "properties": []}, "schema.properties must be an object"),
                ({"type": "object", "properties": {"a": 1}}, "schema.properties.a must be an object"),
                ({"type": "array"}, "schema.items must be an object"),
            )
        ),
        ({"model": 5}, "model", "invalid_type", "'model' must be given"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_a_parameter_that_no_server_takes_is_named_and_counted(
    client: Client, chat: bool, fields: dict[str, Any], param: str, code: str, words: str
) -> None:
    status, content = client.ask(chat, **fields)
    assert status == 400
    error = content["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert words in error["message"]
    assert client.server.statuses == {400: 1}
    assert not client.server.prompts, "a request that is no request asks for nothing"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 1, "temperature": 0, "top_p": 1, "n": 1, "stop": "a", "seed": -1},
        {"max_completion_tokens": 7, "temperature": 2.0, "stop": list("abcd"), "best_of": 1},
        {"max_tokens": None, "temperature": None, "n": None, "stop": None, "response_format": None},
        {"response_format": {"type": "text"}, "stop": []},
    ],
)
def test_parameters_at_their_bounds_are_taken(client: Client, fields: dict[str, Any]) -> None:
    for chat in (True, False):
        status, content = client.ask(chat, **fields)
        assert status == 200
        assert len(content["choices"]) == 1
    assert client.server.statuses == {200: 2}


@pytest.mark.parametrize("first", [5, {"content": "no role"}, {"role": "king", "content": "x"}, {"role": ["user"]}])
def test_a_turn_without_a_role_is_refused(client: Client, first: Any) -> None:
    status, content = client.ask(True, messages=[first, {"role": "user", "content": PROMPT}])
    assert (status, content["error"]["param"]) == (400, "messages[0].role")


def test_json_of_any_depth_and_a_task_of_any_number(client: Client) -> None:
    assert client.post(False, content=b"[" * 200_000)[0] == 400
    assert client.ask(False, prompt="9" * 5000 + ". Instruction:")[0] == 200
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(10):
        deep = {"type": "array", "items": deep}
    assert client.ask(False, response_format=schema(deep))[0] == 200
    status, content = client.ask(False, response_format=schema({"type": "array", "items": deep}))
    assert (status, "10 levels" in content["error"]["message"]) == (400, True)
    assert client.server.statuses == {400: 2, 200: 2}


@pytest.mark.parametrize(
    "query", ["at_least=x", "at_least=0", "at_least=", "at_least=1.5", "skip=x", "skip=-1", "skip=nan"]
)
def test_a_question_about_the_load_that_has_no_answer(client: Client, query: str) -> None:
    status, content = client.stats(query)
    assert (status, content["error"]["param"]) == (400, query.split("=")[0])
    assert client.stats("at_least=1&skip=0")[0] == 200
    assert not client.server.statuses, "it is no attempt at a completion"


def test_the_wrong_key_is_told_before_anything_else_is() -> None:
    with standin(StandIn.resolve({"key": "k"})) as server, httpx.Client(base_url=server.url, trust_env=False) as http:
        reply = http.post("/completions", json={"model": "stand-in", "prompt": PROMPT, "max_tokens": "abc"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.statuses == {401: 1}
