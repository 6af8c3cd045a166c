"""What the server notices of its folder of adapters while it runs."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path

import pytest

from alpaca_ray.serve import live
from alpaca_ray.serve.live import LiveCatalogue
from alpaca_ray.serve.registry import Catalogue, catalogue_of
from alpaca_ray.settings.serve import ServeArgs


def adapter(folder: Path, weights: bytes = b"") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def look(catalogues: LiveCatalogue) -> Catalogue:
    return asyncio.run(catalogues())


def test_adapters_come_change_and_go_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter(tmp_path / "a", b"old")
    args = ServeArgs(adapters=str(tmp_path))
    catalogues = LiveCatalogue(args, catalogue_of(args), rescan_s=0)
    before = look(catalogues).adapters[0]
    assert look(catalogues).adapters[0] is before

    adapter(tmp_path / "b")
    adapter(tmp_path / "a", b"newer")
    (adapter(tmp_path / "c") / "adapter_model.safetensors").unlink()
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        now = look(catalogues)
    assert now.names == ["embedded", "a", "b"]
    assert now.adapters[0].load_id != before.load_id
    assert "adapter b: served from now on" in caplog.text
    assert "adapter a: has changed" in caplog.text
    assert f"not served: adapter {tmp_path / 'c'}" in caplog.text

    shutil.rmtree(tmp_path / "a")
    assert look(catalogues).names == ["embedded", "b"]


def test_a_folder_that_cannot_be_served_leaves_the_others_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter(tmp_path / "a")
    args = ServeArgs(adapters=str(tmp_path))
    catalogues = LiveCatalogue(args, catalogue_of(args), rescan_s=0)
    adapter(tmp_path / "embedded")  # the base model's name
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert look(catalogues).names == ["embedded", "a"]
        assert look(catalogues).names == ["embedded", "a"]
    assert caplog.text.count("rename one") == 1
    shutil.rmtree(tmp_path / "embedded")
    adapter(tmp_path / "b")
    assert look(catalogues).names == ["embedded", "a", "b"]


def test_the_folder_is_not_read_more_often_than_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter(tmp_path / "a")
    args = ServeArgs(adapters=str(tmp_path))
    catalogues = LiveCatalogue(args, catalogue_of(args))
    now = 1e9
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    assert look(catalogues).names == ["embedded", "a"]
    adapter(tmp_path / "b")
    now += 0.9
    assert look(catalogues).names == ["embedded", "a"]
    now += 0.2
    assert look(catalogues).names == ["embedded", "a", "b"]
