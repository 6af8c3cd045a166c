"""Upload of a report to a hub: huggingface_hub itself, against the stand-in hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca_ray.testing.hub import Hub, running_hub

JOB = Path(__file__).resolve().parents[3] / "jobs" / "report.py"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


def report(hub: Hub, folder: Path, *flags: str, token: str | None = "hf_test") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_TOKEN", None)
    environment.pop("HF_HUB_OFFLINE", None)
    if token:
        environment["HF_TOKEN"] = token
    command = [
        sys.executable,
        str(JOB),
        "seeds",
        "--output_dir",
        str(folder / "r"),
        "--tokenizer",
        "words",
        "--max_parsed",
        "0",
    ]
    return subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=120)


def test_an_upload_is_private_and_holds_what_the_folder_holds(hub: Hub, tmp_path: Path) -> None:
    done = report(hub, tmp_path, "--push_to_hub", "me/seeds")
    assert done.returncode == 0, done.stderr
    assert "uploaded: " in done.stdout
    assert f"{hub.url}/datasets/me/seeds (private)" in done.stdout
    repo = hub.repos["me/seeds"]
    assert repo["private"] is True
    assert {"README.md", "report.html", "data/train.jsonl", "figures/coverage.png"} <= set(repo["files"])
    assert all((tmp_path / "r" / name).read_bytes() == content for name, content in repo["files"].items())
    assert {token for path, token in hub.tokens if path.startswith("/api/datasets/me/")} == {"Bearer hf_test"}


def test_public_is_public_only_when_asked_for(hub: Hub, tmp_path: Path) -> None:
    done = report(hub, tmp_path, "--push_to_hub", "me/open", "--public")
    assert done.returncode == 0, done.stderr
    assert hub.repos["me/open"]["private"] is False
    assert "(public)" in done.stdout
    again = report(hub, tmp_path, "--push_to_hub", "me/open")
    assert again.returncode == 2
    assert again.stderr == "error: --push_to_hub me/open: this repository is public: give --public too if you mean it\n"


def test_a_name_without_an_owner_is_the_token_owners(hub: Hub, tmp_path: Path) -> None:
    hub.repos["seeds"] = {
        "type": "dataset",
        "private": False,
        "files": {},
    }  # the hub's own of that name, from before there were owners
    done = report(hub, tmp_path, "--push_to_hub", "seeds")
    assert done.returncode == 0, done.stderr
    assert "README.md" in hub.repos["me/seeds"]["files"]
    assert hub.repos["seeds"]["files"] == {}
    hub.repos["me/seeds"]["private"] = False
    again = report(hub, tmp_path, "--push_to_hub", "seeds")
    assert again.returncode == 2
    assert (
        again.stderr == "error: --push_to_hub me/seeds: this repository is public: give --public too if you mean it\n"
    )
    assert not [path for path, _ in hub.tokens if path.startswith("/api/datasets/seeds")]


def test_nothing_is_uploaded_where_the_hub_made_the_repository_public_all_the_same(hub: Hub, tmp_path: Path) -> None:
    hub.always_public = True
    done = report(hub, tmp_path, "--push_to_hub", "me/seeds")
    assert done.returncode == 2
    assert "nothing was uploaded" in done.stderr
    assert hub.repos["me/seeds"]["files"] == {}


def test_without_a_token_nothing_is_written(hub: Hub, tmp_path: Path) -> None:
    done = report(hub, tmp_path, "--push_to_hub", "me/seeds", token=None)
    assert done.returncode == 2
    assert done.stderr == "error: --push_to_hub me/seeds: no token: run `hf auth login`, or set HF_TOKEN\n"
    assert not (tmp_path / "r").exists()


def test_a_refused_upload_is_one_line_and_leaves_the_report(hub: Hub, tmp_path: Path) -> None:
    hub.refuse_commits = True
    done = report(hub, tmp_path, "--push_to_hub", "me/seeds")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --push_to_hub me/seeds: ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "r" / "report.html").exists()
