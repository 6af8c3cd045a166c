"""Upload of a merged model: huggingface_hub itself, against the stand-in hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_support import make_adapter

from alpaca_ray.testing.hub import Hub, running_hub

JOB = Path(__file__).resolve().parents[3] / "jobs" / "export.py"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


def merge(hub: Hub, folder: Path, adapter: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    environment["HF_TOKEN"] = "hf_test"
    command = [sys.executable, str(JOB), "merge", "--adapter", str(adapter), "--output_dir", str(folder / "out")]
    return subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=120)


def test_a_model_is_uploaded_privately_and_as_it_lies_there(hub: Hub, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    done = merge(hub, tmp_path, adapter, "--push_to_hub", "merged", "--private", "true")
    assert done.returncode == 0, done.stderr
    assert f"uploaded: {hub.url}/me/merged (private)" in done.stdout
    repo = hub.repos["me/merged"]
    assert (repo["type"], repo["private"]) == ("model", True)
    assert repo["files"] == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != "run.json"
    }
    assert "model.safetensors" in repo["files"]


def test_a_public_repository_is_written_only_when_asked_for(hub: Hub, tiny_llama: Path, tmp_path: Path) -> None:
    hub.repos["me/open"] = {"type": "model", "private": False, "files": {}}
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    done = merge(hub, tmp_path, adapter, "--push_to_hub", "me/open")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --push_to_hub me/open: this repository is public: give --private false too if you mean it\n"
    )
    assert not (tmp_path / "out").exists()
    # Asked for, it goes on as far as the hub lets it: what is refused there is one line, and the model stays.
    hub.refuse_commits = True
    done = merge(hub, tmp_path, adapter, "--push_to_hub", "me/open", "--private", "false")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --push_to_hub me/open: ")
    assert "403 Forbidden" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "model.safetensors").exists()
