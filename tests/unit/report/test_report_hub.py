"""Upload to a hub: huggingface_hub itself, against a server that speaks the part of the hub's API that it uses."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

JOB = Path(__file__).resolve().parents[3] / "jobs" / "report.py"


class Hub(ThreadingHTTPServer):
    """Dataset repositories in memory: name to ``{"private": bool, "files": {path: bytes}}``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.tokens: set[tuple[str, str | None]] = set()
        self.refuse_commits = False
        self.always_public = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.tokens.add((self.path, self.headers.get("Authorization")))
        if self.path == "/api/whoami-v2":
            self.answer({"name": "me", "type": "user"})
            return
        name = self.path.removeprefix("/api/datasets/").split("/revision")[0].split("?")[0]
        repo = self.server.repos.get(name)
        if repo is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        else:
            self.answer({"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        self.server.tokens.add((self.path, self.headers.get("Authorization")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            assert asked["type"] == "dataset"
            if name in self.server.repos:
                self.answer({"url": f"{self.server.url}/datasets/{name}"}, 409)
                return
            self.server.repos[name] = {
                "private": asked["visibility"] == "private" and not self.server.always_public,
                "files": {},
            }
            self.answer({"url": f"{self.server.url}/datasets/{name}", "name": name})
        elif self.path.endswith("/preupload/main"):
            wanted = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in wanted]}
            )
        elif self.path.endswith("/commit/main"):
            if self.server.refuse_commits:
                self.answer({"error": "You are over your storage limit"}, 403)
                return
            name = self.path.removeprefix("/api/datasets/").removesuffix("/commit/main")
            repo = self.server.repos[name]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repo["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/datasets/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": f"not known here: {self.path}"}, 404)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


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
    hub.repos["seeds"] = {"private": False, "files": {}}  # the hub's own of that name, from before there were owners
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
