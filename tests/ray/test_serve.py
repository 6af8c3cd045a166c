"""The Serve application on a tiny model: clients as they are, over HTTP."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from alpaca_ray.errors import ModelError, SettingsError
from alpaca_ray.settings.serve import ServeArgs

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Three random adapters, one more than the server keeps in memory."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("red", "green", "blue")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        for parameter, weight in model.named_parameters():
            if "lora_" in parameter:
                torch.nn.init.normal_(weight, std=0.5)
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def url(ray_cluster: None, tiny_llama: Path, adapters: Path) -> Iterator[str]:
    from alpaca_ray.serve.local import local_server

    args = ServeArgs(
        base_model=str(tiny_llama), adapters=str(adapters), dtype="float32", max_loaded_adapters=2, max_batch_size=4
    )
    with local_server(args) as base_url:
        yield base_url


@pytest.fixture
def sdk(url: str) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=url, max_retries=0)


@pytest.fixture
def base(tiny_llama: Path) -> str:
    return str(tiny_llama)


def engine_stats() -> dict[str, int]:
    """The engine's own counts, asked for behind the API."""
    from ray import serve

    app = next(iter(serve.status().applications))
    return serve.get_deployment_handle("model", app).stats.remote().result()


def test_base_and_adapters_are_served_in_one_app(sdk: openai.OpenAI, base: str) -> None:
    assert [model.id for model in sdk.models.list()] == [base, "blue", "green", "red"]

    def ask(model: str) -> str:
        return sdk.completions.create(model=model, prompt="Name a fruit.", temperature=0, max_tokens=12).choices[0].text

    answers = {name: ask(name) for name in (base, "red", "green", "blue")}  # one adapter is evicted on the way
    assert len(set(answers.values())) == 4
    with ThreadPoolExecutor(12) as pool:
        names = [*answers, f"{base}:red"] * 6
        again = list(pool.map(ask, names))
    assert again == [answers[name.removeprefix(f"{base}:")] for name in names]


def test_streams_of_both_kinds(sdk: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "red", "temperature": 1, "seed": 1, "max_tokens": 16, "n": 2}
    whole = sdk.completions.create(prompt="Why?", **options)
    texts = ["", ""]
    usage = None
    for chunk in sdk.completions.create(prompt="Why?", stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert usage == whole.usage

    messages: Any = [{"role": "user", "content": "Why?"}]
    options |= {"n": 1}
    chat = sdk.chat.completions.create(messages=messages, **options)
    stream = sdk.chat.completions.create(messages=messages, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == chat.choices[0].message.content


def test_raw_requests_and_refusals(url: str, base: str) -> None:
    request = {"model": base, "prompt": "a", "max_tokens": 3, "temperature": 0, "stream": True}
    answer = httpx.post(f"{url}/completions", json=request)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert httpx.get(f"{url.removesuffix('/v1')}/health").status_code == 200
    for body, status, code in (
        (json.dumps({**request, "model": "grey"}), 404, "model_not_found"),
        ("{", 400, None),
        (json.dumps({**request, "prompt": "a " * 4000}), 400, "context_length_exceeded"),
    ):
        refused = httpx.post(f"{url}/completions", content=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("headers", [{}, {"x-request-disconnect-disabled": "?1"}])
@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_give_their_places_back(url: str, base: str, headers: dict[str, str], stream: bool) -> None:
    long: dict[str, Any] = {"model": base, "prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": stream}

    def leave(_: int) -> None:
        with httpx.Client() as client:
            if stream:
                with client.stream("POST", f"{url}/completions", json=long, headers=headers) as answer:
                    next(answer.iter_bytes())
                return
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{url}/completions", json=long, headers=headers, timeout=0.2)

    before = engine_stats()["generated"]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(leave, range(12)))
    while (stats := engine_stats())["running"] or stats["waiting"]:
        time.sleep(0.05)
    assert stats["generated"] - before < 12 * 900 / 4


def test_a_second_server_shares_the_port_under_a_prefix_of_its_own(url: str, tiny_llama: Path, base: str) -> None:
    from alpaca_ray.serve.local import local_server

    with local_server(ServeArgs(base_model=str(tiny_llama), dtype="float32", num_cpus=0.5)) as other:
        assert other.split("/")[2] == url.split("/")[2]
        assert other != url
        sdk = openai.OpenAI(api_key="none", base_url=other, max_retries=0)
        assert [model.id for model in sdk.models.list()] == [base]
        assert sdk.completions.create(model=base, prompt="a", max_tokens=2).usage is not None
    assert httpx.get(f"{other}/models").status_code == 404
    assert httpx.get(f"{url}/models").status_code == 200


def test_wrong_arguments_are_found_before_anything_starts(ray_cluster: None, adapters: Path, tmp_path: Path) -> None:
    from alpaca_ray.serve.app import build_app

    with pytest.raises(SettingsError, match="unknown key 'adapter'"):
        build_app({"adapter": str(adapters)})
    with pytest.raises(ModelError, match="no such folder"):
        build_app({"base_model": f"./{uuid.uuid4()}"})


def test_a_model_that_cannot_be_loaded_ends_with_its_reason(url: str, tiny_llama: Path, tmp_path: Path) -> None:
    from alpaca_ray.serve.local import local_server

    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"), local_server(ServeArgs(base_model=str(tmp_path))):
        pass
    assert httpx.get(f"{url}/models").status_code == 200
