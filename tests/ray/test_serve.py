"""The Serve application on a tiny model: clients as they are, over HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
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


def test_adapters_that_come_change_or_do_not_fit(
    url: str, tiny_llama: Path, adapters: Path, base: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from alpaca_ray.serve.local import local_server

    served = tmp_path / "served"
    shutil.copytree(adapters / "red", served / "red")
    (served / "half").mkdir()
    shutil.copy(adapters / "red" / "adapter_config.json", served / "half")
    shutil.copytree(adapters / "red", served / "misfit")
    weights = load_file(served / "misfit" / "adapter_model.safetensors")
    cut = {name: weight[:, :3].clone() for name, weight in weights.items()}
    save_file(cut, served / "misfit" / "adapter_model.safetensors")
    args = ServeArgs(
        base_model=base, adapters=str(served), dtype="float32", num_cpus=0.5, max_loaded_adapters=1, max_batch_size=4
    )
    with local_server(args) as other:
        sdk = openai.OpenAI(api_key="none", base_url=other, max_retries=0)

        def ask(model: str) -> str:
            options: dict[str, Any] = {"prompt": "Name a fruit.", "temperature": 0, "max_tokens": 12}
            return sdk.completions.create(model=model, **options).choices[0].text

        assert [model.id for model in sdk.models.list()] == [base, "misfit", "red"]
        with pytest.raises(openai.BadRequestError, match="does not fit the base model"):
            ask("misfit")
        red = ask("red")

        shutil.copytree(adapters / "blue", served / "blue")
        while "blue" not in [model.id for model in sdk.models.list()]:
            time.sleep(0.1)
        blue = ask("blue")
        assert len({ask(base), red, blue}) == 3
        with ThreadPoolExecutor(16) as pool:  # one place for two adapters: they evict each other all the time
            assert list(pool.map(ask, ["red", "blue"] * 24)) == [red, blue] * 24

        shutil.copy(adapters / "blue" / "adapter_model.safetensors", served / "red")
        while ask("red") != blue:
            time.sleep(0.1)
        shutil.rmtree(served / "blue")
        while "blue" in [model.id for model in sdk.models.list()]:
            time.sleep(0.1)
        with pytest.raises(openai.NotFoundError):
            ask("blue")


def test_an_adapter_that_is_evicted_at_once_still_answers(
    tiny_llama: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    from alpaca_ray.serve.adapter_folder import read_adapter
    from alpaca_ray.serve.answers import Answer
    from alpaca_ray.serve.engine.types import Sampling
    from alpaca_ray.serve.model_server import ModelServer
    from alpaca_ray.serve.protocol import Job

    class Forgetful(ModelServer):
        """Evicts each adapter as early as Serve's multiplexing can: in the event loop's next turn."""

        async def adapter(self, load_id: str) -> Any:
            lease = await super().adapter(load_id)
            asyncio.get_running_loop().call_soon(lease.__del__)
            return lease

    server = Forgetful(ServeArgs(base_model=str(tiny_llama), dtype="float32"), threads=1)
    wanted: ContextVar[str] = ContextVar("wanted")
    monkeypatch.setattr(serve, "get_multiplexed_model_id", wanted.get)

    async def ask(name: str) -> str:
        wanted.set(read_adapter(adapters / name).load_id)
        job = Job(name, Sampling(max_tokens=8, temperature=0), prompts=("Name a fruit.",))
        (answer,) = [part async for part in server.answer(job)]
        assert isinstance(answer, Answer), answer
        return answer.choices[0].text

    async def run() -> None:
        texts = await asyncio.gather(*[ask(name) for name in ("red", "blue") * 8])
        assert len(set(texts)) == 2
        while (await server.stats())["adapters"]:  # all of them are freed in the end
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_each_replica_finds_the_embedded_model_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from alpaca_ray.serve.app import build_app

    monkeypatch.setenv("ALPACA_RAY_CACHE", str(tmp_path))
    application = build_app({"base_model": "embedded", "num_gpus": 0})
    model = application._bound_deployment.init_args[0]
    assert model._bound_deployment.init_args[0].base_model == "embedded"
    assert list(tmp_path.iterdir()) == []


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


def test_wrong_arguments_are_found_before_anything_starts(
    ray_cluster: None, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alpaca_ray.serve.app import build_app

    with pytest.raises(SettingsError, match="unknown key 'adapter'"):
        build_app({"adapter": str(adapters)})
    assert capsys.readouterr().err == "error: serve args: unknown key 'adapter': did you mean 'adapters'?\n"
    with pytest.raises(ModelError, match="no such folder"):
        build_app({"base_model": f"./{uuid.uuid4()}"})


def test_a_model_that_cannot_be_loaded_ends_with_its_reason(url: str, tiny_llama: Path, tmp_path: Path) -> None:
    from alpaca_ray.serve.local import local_server

    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"), local_server(ServeArgs(base_model=str(tmp_path))):
        pass
    assert httpx.get(f"{url}/models").status_code == 200
