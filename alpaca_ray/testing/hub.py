"""A stand-in hub over HTTP: the part of the Hugging Face hub's API that huggingface_hub uses for an upload."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name to ``{"type": "dataset" or "model", "private": bool, "files": {path: bytes}}``."""

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

    def repo(self, path: str) -> tuple[str, str]:
        """Return the kind and the name of the repository that a path of the API is about."""
        kind, _, name = path.removeprefix("/api/").partition("/")
        return kind.removesuffix("s"), name

    def do_GET(self) -> None:
        self.server.tokens.add((self.path, self.headers.get("Authorization")))
        if self.path == "/api/whoami-v2":
            self.answer({"name": "me", "type": "user"})
            return
        kind, name = self.repo(self.path.split("/revision")[0].split("?")[0])
        repo = self.server.repos.get(name)
        if repo is None or repo["type"] != kind:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        else:
            self.answer({"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        self.server.tokens.add((self.path, self.headers.get("Authorization")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            kind = asked.get("type", "model")
            url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
            if name in self.server.repos:
                self.answer({"url": url}, 409)
                return
            self.server.repos[name] = {
                "type": kind,
                "private": asked["visibility"] == "private" and not self.server.always_public,
                "files": {},
            }
            self.answer({"url": url, "name": name})
        elif self.path.endswith("/preupload/main"):
            wanted = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in wanted]}
            )
        elif self.path.endswith("/commit/main"):
            if self.server.refuse_commits:
                self.answer({"error": "You are over your storage limit"}, 403)
                return
            _, name = self.repo(self.path.removesuffix("/commit/main"))
            repo = self.server.repos[name]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repo["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": f"not known here: {self.path}"}, 404)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of this machine until the block ends."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
