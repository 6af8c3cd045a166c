"""Start-up: seconds from command to first request, first training step and first served token, and which part is ours.

Each stage is timed as a whole process, from its start to the first sign of work seen from outside, in turn with a
floor: a bare program in `benchmarks/floors/` that does only what Ray, torch and transformers themselves need for the
same sign. The difference is this project's share. The embedded model is used and must be in the cache already.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from alpaca_ray.models import fetch_embedded
from alpaca_ray.testing.processes import free_port, running

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ROOT / "benchmarks" / "floors"
LIMIT = 300  # seconds after which a start-up counts as hung


class FirstRequest:
    """An HTTP server that notes when the first completion is asked for and answers it with an empty text."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self._answer(
                    {"object": "list", "data": [{"id": "floor", "object": "model", "created": 0, "owned_by": ""}]}
                )

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.arrived.set()
                choice = {"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                body = {"id": "x", "object": "text_completion", "created": 0, "model": "floor", "choices": [choice]}
                self._answer({**body, "usage": usage})

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def first_request(command: Callable[[str], list[str]]) -> float:
    """Seconds from starting a command to the first completion request it sends to the given base URL."""
    server = FirstRequest()
    started = time.monotonic()
    with running(command(server.base_url), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        if not server.arrived.wait(LIMIT):
            raise SystemExit(f"no request within {LIMIT} s")
        seconds = time.monotonic() - started
    server.server.shutdown()
    return seconds


def first_line(command: list[str], mark: str) -> float:
    """Seconds from starting a command to the first line of its output that holds ``mark``."""
    started = time.monotonic()
    with running(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        seen = []
        for line in child.stdout or ():
            seen.append(line)
            if mark in line:
                return time.monotonic() - started
    raise SystemExit(f"{' '.join(command)} ended without {mark!r}:\n{''.join(seen[-20:])}")


def first_token(command: Callable[[int], list[str]]) -> float:
    """Seconds from starting a server to the first byte of an answer of one token."""
    port = free_port()
    body = json.dumps({"model": "embedded", "prompt": "Hello", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
    )
    started = time.monotonic()
    with running(command(port), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while time.monotonic() - started < LIMIT and child.poll() is None:
            with suppress(OSError):
                with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                    answer.read(1)
                return time.monotonic() - started
            time.sleep(0.05)
    raise SystemExit(f"no token within {LIMIT} s")


def measures(scratch: Path) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    """Return, for each stage, how ours and the floor are timed."""
    model = str(fetch_embedded())

    def job(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "jobs" / name), *arguments]

    def floor(name: str, *arguments: str) -> list[str]:
        return [sys.executable, str(FLOORS / name), *arguments]

    def output() -> str:
        return tempfile.mkdtemp(dir=scratch)

    return {
        "generate: first request": (
            lambda: first_request(
                lambda url: job("generate.py", "--base_url", url, "--model_name", "floor", "--output_dir", output())
            ),
            lambda: first_request(lambda url: floor("generate.py", url)),
        ),
        "train: first step": (
            lambda: first_line(
                job("train.py", "--max_steps", "1", "--logging_steps", "1", "--output_dir", output()), "step 1/"
            ),
            lambda: first_line(floor("train.py", model), "FIRST STEP"),
        ),
        "serve: first token": (
            lambda: first_token(lambda port: job("serve.py", "--base_model", "embedded", "--server_port", str(port))),
            lambda: first_token(lambda port: floor("serve.py", model, str(port))),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each, ours and floor in turn (default 3)")
    parser.add_argument("--only", choices=["generate", "train", "serve"], help="time one stage only")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="alpaca_startup_"))
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    }
    try:
        for stage, (ours, floor) in measures(scratch).items():
            if arguments.only and not stage.startswith(arguments.only):
                continue
            pairs = []
            for number in range(arguments.runs):
                pairs.append((ours(), floor()))
                print(f"{stage}, run {number + 1}: {pairs[-1][0]:.1f} s, floor {pairs[-1][1]:.1f} s", flush=True)
            total = statistics.median(pair[0] for pair in pairs)
            least = statistics.median(pair[1] for pair in pairs)
            ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
            result[stage] = {
                "seconds": round(total, 1),
                "floor_seconds": round(least, 1),
                "ours_seconds": round(total - least, 1),
                "ratio": round(ratio, 2),
            }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
