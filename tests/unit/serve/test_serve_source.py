"""Adapters as peft's first versions wrote them, named by an operator."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alpaca_ray.errors import ModelError
from alpaca_ray.models import cache_folder
from alpaca_ray.serve.adapter_source import resolve_adapters
from alpaca_ray.serve.engine.torch_engine import TorchEngine
from alpaca_ray.serve.engine.types import GenerationRequest, Sampling
from alpaca_ray.serve.registry import scan

# The keys that peft 0.2 wrote.
OLD_CONFIG = {
    "base_model_name_or_path": "decapoda-research/llama-7b-hf",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_RAY_CACHE", str(tmp_path / "cache"))


def old_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for layer in range(2):
        for module, width in (("q_proj", 32), ("v_proj", 16)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            weights[f"{name}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(width, 4, generator=generator)
    return weights


def old_adapter(folder: Path, weights: Any = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**OLD_CONFIG, **config}))
    torch.save(old_weights() if weights is None else weights, folder / "adapter_model.bin")
    return folder


def test_an_old_adapter_is_converted_once_and_answers(engine: TorchEngine, tmp_path: Path) -> None:
    folder = old_adapter(tmp_path / "alpaca-lora-7b")
    converted = Path(resolve_adapters(str(folder)))
    assert converted.is_relative_to(cache_folder())
    assert [path.name for path in folder.iterdir() if "safetensors" in path.name] == []
    assert [found.name for found in scan(converted).adapters] == ["alpaca-lora-7b"]
    config = json.loads((converted / "adapter_config.json").read_text())
    assert OLD_CONFIG.keys() - config.keys() == {"enable_lora", "merge_weights"}  # what today's peft does not know
    assert config == {name: OLD_CONFIG[name] for name in config}
    kept = load_file(converted / "adapter_model.safetensors")
    assert kept.keys() == old_weights().keys()
    assert all(torch.equal(kept[name], weight) for name, weight in old_weights().items())

    written = (converted / "adapter_model.safetensors").stat().st_mtime_ns
    assert resolve_adapters(str(folder)) == str(converted)
    assert (converted / "adapter_model.safetensors").stat().st_mtime_ns == written

    async def run() -> None:
        async def ask(key: str | None) -> str:
            request = GenerationRequest((5, 6), Sampling(max_tokens=12, temperature=0), key)
            return "".join([piece.text async for piece in engine.generate(request)])

        base = await ask(None)
        assert await ask(await engine.load_adapter(converted)) != base

    asyncio.run(run())


def test_new_weights_under_the_old_name_are_converted_anew(tmp_path: Path) -> None:
    first = resolve_adapters(str(old_adapter(tmp_path / "a")))
    shutil.rmtree(tmp_path / "a")
    changed = {name: weight * 2 for name, weight in old_weights().items()}
    second = resolve_adapters(str(old_adapter(tmp_path / "a", changed)))
    assert first != second
    assert Path(first).name == Path(second).name == "a"


def test_weights_that_share_memory_are_converted(tmp_path: Path) -> None:
    shared = torch.randn(8, 32)
    folder = old_adapter(tmp_path / "a", {"one": shared[:4], "two": shared})
    kept = load_file(Path(resolve_adapters(str(folder))) / "adapter_model.safetensors")
    assert torch.equal(kept["one"], shared[:4])


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOSTILE_TARGET"],)


@pytest.mark.parametrize("content", ["hostile", "list", "number", "empty", "garbage"])
def test_a_pickle_of_anything_but_weights_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("HOSTILE_TARGET", str(tmp_path / "ran"))
    given: dict[str, Any] = {"hostile": {"w": Hostile()}, "list": [torch.zeros(1)], "number": {"w": 3}}
    folder = old_adapter(tmp_path / "a", given.get(content, {}))
    if content == "garbage":
        (folder / "adapter_model.bin").write_bytes(b"\x80\x02not a pickle")
    with pytest.raises(ModelError, match=r"adapter .*a/adapter_model\.bin") as raised:
        resolve_adapters(str(folder))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
    assert not list(cache_folder().rglob("*.safetensors"))


def test_a_folder_of_adapters_is_left_as_it_is(tmp_path: Path) -> None:
    old_adapter(tmp_path / "all" / "a")
    assert resolve_adapters(str(tmp_path / "all")) == str(tmp_path / "all")
    found = scan(tmp_path / "all")
    assert found.adapters == []
    assert "jobs/serve.py" in found.skipped[0]
    assert "pickle" in found.skipped[0]


def test_a_config_of_unknown_or_few_keys_loads(engine: TorchEngine, tmp_path: Path) -> None:
    folder = Path(resolve_adapters(str(old_adapter(tmp_path / "a"))))
    (folder / "adapter_config.json").write_text(json.dumps(OLD_CONFIG))
    with pytest.warns(UserWarning, match="merge_weights"):
        assert asyncio.run(engine.load_adapter(folder))
    few = {name: OLD_CONFIG[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}
    (folder / "adapter_config.json").write_text(json.dumps(few))
    assert asyncio.run(engine.load_adapter(folder))


def test_an_old_adapter_that_cannot_be_served_is_not_converted(tmp_path: Path) -> None:
    folder = old_adapter(tmp_path / "a", enable_lora=[True, False, True])
    with pytest.raises(ModelError, match="enable_lora"):
        resolve_adapters(str(folder))
    assert not list(cache_folder().rglob("*.safetensors"))


def test_a_name_that_is_no_folder_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        resolve_adapters(str(tmp_path / "missing"))
