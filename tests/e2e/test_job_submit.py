"""``ray job submit`` on a cluster that ``ray start --head`` started, with the environment that the README gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from e2e_support import ROOT

from alpaca_ray.records import read_records
from alpaca_ray.testing.processes import free_port, running

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.timeout(600)


def environment(storage: Path) -> dict[str, str]:
    """What the README tells the user to export, and a temporary folder so that no other cluster is touched or found."""
    return {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "ALPACA_RAY_STORAGE": str(storage / "storage"),
        "RAY_TMPDIR": str(storage),
    }


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster started from a copy of the repository's folder; yields its dashboard's address and the environment."""
    storage = Path(tempfile.mkdtemp(prefix="ray"))  # short: the path of a socket may have 107 bytes
    variables = environment(storage)
    if not (Path.home() / ".ray" / "auth_token").exists() and not os.environ.get("RAY_AUTH_TOKEN"):
        subprocess.run([str(BIN / "ray"), "get-auth-token", "--generate"], check=True, capture_output=True, timeout=60)
    dashboard = free_port()
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "3", "--object-store-memory", "300000000"]
    command += ["--port", str(free_port()), "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(free_port())]  # jobs go through it; its default may be taken
    log = storage / "head.log"
    copy = shutil.copytree(
        ROOT, storage / "repository", ignore=shutil.ignore_patterns(".git", ".venv", "out", ".*cache")
    )
    options = {"cwd": copy, "env": variables, "stderr": subprocess.STDOUT}
    with log.open("w") as output, running(command, stdout=output, **options) as child:
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and child.poll() is None:
            try:
                if httpx.get(f"{address}/api/version", timeout=5).status_code in (200, 401, 403):
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield address, variables


def submit(head: tuple[str, dict[str, str]], *arguments: str) -> subprocess.CompletedProcess[str]:
    address, variables = head
    command = [str(BIN / "ray"), "job", "submit", "--address", address, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=420)


@pytest.mark.slow
def test_an_uploaded_working_dir_keeps_its_result(head: tuple[str, dict[str, str]]) -> None:
    train = ["python", "jobs/train.py", "--max_steps", "4", "--output_dir", "./out"]
    done = submit(head, "--working-dir", ".", "--", *train)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = re.search(r"adapter saved to (\S+) on node", done.stdout)
    assert found, done.stdout[-2000:]
    folder = Path(found.group(1))
    assert folder == Path(head[1]["ALPACA_RAY_STORAGE"]) / "out"
    assert (folder / "adapter_model.safetensors").is_file()


def test_a_job_without_a_working_dir_runs_where_the_cluster_runs(head: tuple[str, dict[str, str]]) -> None:
    done = submit(head, "--", "python", "jobs/train.py", "--max_steps", "2", "--output_dir", "out/short")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    output = Path(head[1]["RAY_TMPDIR"]) / "repository" / "out" / "short"
    assert f"adapter saved to {output} on node" in done.stdout
    assert (output / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_users_own_form_trains_on_the_shipped_seeds(head: tuple[str, dict[str, str]]) -> None:
    done = submit(head, "--", "python", "jobs/train.py")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    output = Path(head[1]["RAY_TMPDIR"]) / "repository" / "out" / "train"
    assert f"adapter saved to {output} on node" in done.stdout
    assert (output / "adapter_model.safetensors").is_file()
    run = json.loads((output / "run.json").read_text())
    seeds = {record["id"] for record in read_records("seeds")}
    assert set(json.loads((output / "heldout_ids.json").read_text())) < seeds
    assert run["validation_loss_after"] < run["validation_loss_before"]
