"""The API over a real engine on a tiny model, without Ray: what clients send and what they get."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from fastapi.testclient import TestClient

from alpaca_ray.prompts import STANFORD
from alpaca_ray.serve.adapter_folder import AdapterInfo
from alpaca_ray.serve.answers import Part
from alpaca_ray.serve.api import Catalogues, create_api
from alpaca_ray.serve.engine.loading import load_for_generation
from alpaca_ray.serve.engine.torch_engine import TorchEngine
from alpaca_ray.serve.protocol import ApiError, Job
from alpaca_ray.serve.registry import Catalogue, build_catalogue, scan
from alpaca_ray.serve.service import ModelService

SCHEMAS = Path(__file__).parents[4] / "shared" / "schemas" / "openai.schema.json"


def always(catalogue: Catalogue) -> Catalogues:
    async def catalogues() -> Catalogue:
        return catalogue

    return catalogues


@pytest.fixture(scope="module")
def client(tiny_llama: Path, tiny_adapters: Path) -> Iterator[TestClient]:
    engine = TorchEngine(load_for_generation(str(tiny_llama), dtype="float32"), max_batch_size=8)
    service = ModelService(engine)
    keys: dict[str, str] = {}

    async def backend(job: Job, adapter: AdapterInfo | None) -> AsyncGenerator[Part, None]:
        if adapter and adapter.name not in keys:
            keys[adapter.name] = await engine.load_adapter(adapter.folder)
        async for part in service.answer(job, adapter, keys[adapter.name] if adapter else None):
            yield part

    yield TestClient(create_api(always(build_catalogue("tiny", scan(tiny_adapters).adapters)), backend))
    engine.close()


@pytest.fixture
def sdk(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)


def valid(kind: str, body: Any) -> Any:
    """Check a body against OpenAI's published shape, where its file is at hand."""
    if SCHEMAS.is_file():
        shapes = json.loads(SCHEMAS.read_text())
        jsonschema.validate(body, {"$ref": f"#/$defs/{kind}", "$defs": shapes["$defs"]})
    return body


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_models_are_listed_base_first(client: TestClient, sdk: openai.OpenAI) -> None:
    body = valid("ListModelsResponse", client.get("/v1/models").json())
    assert [card["id"] for card in body["data"]] == ["tiny", "blue", "red"]
    assert [card["parent"] for card in body["data"]] == [None, "tiny", "tiny"]
    assert [model.id for model in sdk.models.list()] == ["tiny", "blue", "red"]
    assert sdk.models.retrieve("tiny:red").id == "tiny:red"
    assert client.get("/v1/models/green").status_code == 404


def test_a_completion(client: TestClient) -> None:
    request = {"model": "tiny", "prompt": "Name a fruit.", "temperature": 0, "max_tokens": 7, "ignore_eos": True}
    body = valid("CreateCompletionResponse", client.post("/v1/completions", json=request).json())
    assert body["usage"]["completion_tokens"] == 7
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 7
    assert body["choices"][0]["finish_reason"] == "length"


def test_adapters_answer_differently_and_by_both_names(sdk: openai.OpenAI) -> None:
    def ask(model: str) -> str:
        return sdk.completions.create(model=model, prompt="Name a fruit.", temperature=0, max_tokens=12).choices[0].text

    answers = {name: ask(name) for name in ("tiny", "red", "blue")}
    assert len(set(answers.values())) == 3
    assert ask("tiny:red") == answers["red"]


def test_several_prompts_and_choices_keep_their_order(sdk: openai.OpenAI, client: TestClient) -> None:
    prompts = ["Name a fruit.", "Write a poem about the sea.", "2 + 2 ="]
    whole = sdk.completions.create(model="tiny", prompt=prompts, n=2, temperature=1, seed=5, max_tokens=9)
    assert [choice.index for choice in whole.choices] == list(range(6))
    for number, prompt in enumerate(prompts):
        alone = sdk.completions.create(model="tiny", prompt=prompt, n=2, temperature=1, seed=5, max_tokens=9)
        assert [choice.text for choice in alone.choices] == [c.text for c in whole.choices[2 * number : 2 * number + 2]]
        assert alone.choices[0].text != alone.choices[1].text


def test_a_prompt_may_be_token_ids(sdk: openai.OpenAI, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_llama)("Name a fruit.").input_ids
    texts = {
        sdk.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=9).choices[0].text
        for prompt in ("Name a fruit.", ids, [ids])
    }
    assert len(texts) == 1


def test_a_streamed_completion_joins_to_the_whole_one(sdk: openai.OpenAI, client: TestClient) -> None:
    options: dict[str, Any] = {"model": "red", "prompt": ["Name a fruit.", "Why?"], "temperature": 1, "seed": 3}
    options |= {"max_tokens": 20, "n": 2}
    whole = sdk.completions.create(**options)
    texts: dict[int, str] = {}
    reasons = {}
    usage = None
    for chunk in sdk.completions.create(stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
    assert [texts[index] for index in range(4)] == [choice.text for choice in whole.choices]
    assert [reasons[index] for index in range(4)] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_a_completion_stream_on_the_wire(client: TestClient) -> None:
    request = {"model": "tiny", "prompt": "a", "temperature": 0, "max_tokens": 5, "stream": True, "ignore_eos": True}
    answer = client.post("/v1/completions", json=request)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, end = events(answer.text)
    assert end == "[DONE]"
    for chunk in chunks:
        reason = chunk["choices"][0]["finish_reason"]
        chunk["choices"][0]["finish_reason"] = reason or "stop"
        valid("CreateCompletionResponse", chunk)
        assert "usage" not in chunk
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_chat_answer_and_its_stream(client: TestClient, sdk: openai.OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Name a fruit."}]}],
        "temperature": 0,
        "max_completion_tokens": 11,
    }
    body = valid("CreateChatCompletionResponse", client.post("/v1/chat/completions", json=request).json())
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, end = events(client.post("/v1/chat/completions", json=request).text)
    assert end == "[DONE]"
    for chunk in chunks:
        valid("CreateChatCompletionStreamResponse", chunk)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == body["usage"]
    deltas = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == body["choices"][0]["message"]["content"]


def test_chat_without_a_limit_may_fill_the_context(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 1024


def test_chat_uses_the_instruction_template(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fruit."}],
        temperature=0,
        max_tokens=15,
    )
    prompt = STANFORD.format({"instruction": "Be brief.\nName a fruit."})
    text = sdk.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=15)
    assert chat.choices[0].message.content == text.choices[0].text


def test_a_stop_text_ends_a_completion(sdk: openai.OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return sdk.completions.create(model="blue", prompt="Why?", temperature=0, max_tokens=40, **options).choices[0]

    whole = ask(extra_body={"ignore_eos": True}).text
    stop = whole[10:14]
    stopped = ask(stop=[stop, "never"], extra_body={"ignore_eos": True})
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"model": "green"}, 404, "green"),
        ({"model": "tiny:green"}, 404, "green"),
        ({"model": "../red"}, 404, "red"),
        ({"model": None}, 400, "model"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [999999]}, 400, "999999"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": "\ud800"}, 400, "Unicode"),
        ({"prompt": "a " * 3000}, 400, "context"),
        ({"max_tokens": 5000}, 400, "context"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "7"}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 99}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 0}, 400, "n"),
        ({"n": 10**6}, 400, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, 400, "logit_bias"),
        ({"logprobs": 3}, 400, "logprobs"),
        ({"echo": True}, 400, "echo"),
        ({"best_of": 4}, 400, "best_of"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    client: TestClient, change: dict[str, Any], status: int, word: str
) -> None:
    request = {"model": "tiny", "prompt": "a", "max_tokens": 2, **change}
    answer = client.post("/v1/completions", content=json.dumps({k: v for k, v in request.items() if v is not None}))
    assert answer.status_code == status, answer.text
    body = valid("ErrorResponse", answer.json())
    assert word in body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": "tiny"}', b"null"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_no_request_is_a_400(client: TestClient, body: bytes, path: str) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 400, answer.text
    valid("ErrorResponse", answer.json())


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([], "messages"),
        ([{"role": "user"}], "content"),
        ([{"role": "tool", "content": "x"}], "role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "content"),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "earlier turns",
        ),
        ([{"role": "system", "content": "a"}], "one user message"),
    ],
)
def test_messages_that_cannot_be_expressed_are_refused(
    client: TestClient, messages: list[dict[str, Any]], word: str
) -> None:
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


def test_harmless_unknown_fields_are_ignored_and_unsupported_ones_refused(client: TestClient) -> None:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    harmless = {"user": "me", "metadata": {}, "store": False, "tools": [], "logprobs": False, "whatever": 1}
    assert client.post("/v1/chat/completions", json={**request, **harmless}).status_code == 200
    for name, value in {"tools": [{"type": "function"}], "response_format": {"type": "json_object"}}.items():
        answer = client.post("/v1/chat/completions", json={**request, name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


def test_an_unknown_path_and_a_wrong_method_answer_in_the_same_form(client: TestClient) -> None:
    for answer, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/completions"), 405)):
        assert answer.status_code == status
        valid("ErrorResponse", answer.json())


def test_an_error_after_the_stream_has_begun_is_its_last_event() -> None:
    from alpaca_ray.serve.answers import ChoicePiece

    async def backend(job: Job, adapter: AdapterInfo | None) -> AsyncGenerator[Part, None]:
        yield [ChoicePiece(0, "be")]
        raise ApiError("the model broke", status=500)

    client = TestClient(create_api(always(build_catalogue("tiny", [])), backend))
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "stream": True})
    assert answer.status_code == 200
    first, last = events(answer.text)
    assert first["choices"][0]["text"] == "be"
    assert last["error"] == {"message": "the model broke", "type": "server_error", "param": None, "code": None}
