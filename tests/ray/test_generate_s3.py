"""Generation into a bucket: a real S3 client over HTTP against a stand-in of S3."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import httpx
import psutil
import pytest
from moto.server import ThreadedMotoServer
from test_generate import CLASSIC, read_json
from test_generate_chaos import digest_of, kill_everything

from alpaca_ray.generate.bucket import Bucket
from alpaca_ray.generate.folder import WHOLE
from alpaca_ray.rows import read_rows
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

pytestmark = pytest.mark.ray

JOB = Path(__file__).parents[2] / "jobs" / "generate.py"
TEACHER = {"latency": 0.3, "jitter": 0.3, "rate_500": 0.05, "tasks": 3}
GIVEN: dict[str, Any] = {
    "num_instructions_to_generate": 60,
    "max_in_flight": 6,
    "num_cpus": 1,
    "max_tokens_total": 100_000_000,
    **CLASSIC,
}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A bucket ``runs``, known to this process and to those that it starts by their environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()  # what an earlier one of this process held
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "ALPACA_RAY_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    filesystem.mkdir("runs")
    yield filesystem
    server.stop()


def command(output: str | Path, server: StandInServer, *more: str) -> list[str]:
    given = {**GIVEN, "output_dir": str(output), "base_url": server.url}
    return [
        sys.executable,
        str(JOB),
        *(text for name, value in given.items() for text in (f"--{name}", str(value))),
        *more,
    ]


def done(*given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*given), capture_output=True, text=True, timeout=200)


def journaled(s3: Any, folder: str) -> list[dict[str, Any]]:
    """The outcomes in the bucket, in the order they came."""
    paths = sorted(s3.find(f"{folder}/journal.jsonl"))
    text = b"".join(s3.cat_file(path) for path in paths).decode()
    return [json.loads(line) for line in text.splitlines()][1:]


def objects(s3: Any, folder: str) -> set[str]:
    return {path[len(folder) + 1 :].split("/")[0] for path in s3.find(folder)}


@pytest.mark.timeout(400)
def test_a_run_into_a_bucket_is_the_run_into_a_folder(s3: Any, tmp_path: Path) -> None:
    with standin(StandIn.resolve(TEACHER)) as server:
        first = done(tmp_path / "local", server)
        assert first.returncode == 0, first.stderr
    uri = "s3://runs/deep/run"
    with standin(StandIn.resolve(TEACHER)) as server:
        second = done(uri, server)
        assert second.returncode == 0, second.stderr
        assert f"result: {uri}/regen.json" in second.stdout
        files = {"journal.jsonl", "sent.jsonl", "regen.json", "rejected.jsonl", "metrics.json", "run.json"}
        assert objects(s3, "runs/deep/run") == files
        assert s3.cat_file("runs/deep/run/regen.json") == (tmp_path / "local" / "regen.json").read_bytes()
        assert json.loads(s3.cat_file("runs/deep/run/run.json"))["complete"] is True
        assert len(list(read_rows(f"{uri}/regen.json"))) == 60
        asked = sum(server.answered.values())
        # Everything that is in the way of another run is said with the bucket's name.
        used = done(uri, server)
        assert used.returncode == 2
        assert f"error: --output_dir {uri} already holds" in used.stderr
        changed = done(uri, server, "--resume", "--similarity_threshold", "0.5")
        assert changed.returncode == 2
        assert f"the journal in {uri} was made with other settings" in changed.stderr
        replayed = done(uri, server, "--replay", "--similarity_threshold", "0.3")
        assert replayed.returncode == 0, replayed.stderr
        assert len(json.loads(s3.cat_file("runs/deep/run/regen.json"))) < 60
        assert sum(server.answered.values()) == asked
    assert list((tmp_path / "cache" / "outputs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_into_a_bucket_outlives_its_machine(s3: Any, tmp_path: Path) -> None:
    """Killed with its cluster, and its copy lost: the bucket alone is left to go on from."""
    with standin(StandIn.resolve(TEACHER)) as server:
        assert done(tmp_path / "local", server).returncode == 0
    with standin(StandIn.resolve({**TEACHER, "latency": 1.0})) as server:
        # Few requests at once: a second run has to meet the first at work.
        slowly = command("s3://runs/run", server, "--max_in_flight", "2")
        child = subprocess.Popen(slowly, stdout=subprocess.DEVNULL, start_new_session=True)
        while len(journaled(s3, "runs/run")) < 4:
            assert child.poll() is None
            time.sleep(0.1)
        beside = done("s3://runs/run", server, "--resume")
        assert beside.returncode == 2
        assert child.poll() is None
        assert "s3://runs/run: another run is at work in it" in beside.stderr, beside.stdout
        kill_everything(psutil.Process(child.pid))
        child.wait()
        before = {row["prompt_sha"] for row in journaled(s3, "runs/run")}
        asked = Counter(server.answered)
        resumed = done("s3://runs/run", server, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        again = {digest_of(prompt) for prompt, count in server.answered.items() if count > asked[prompt] > 0}
        assert not again & before, "a request with a durable answer was sent again"
        metrics = json.loads(s3.cat_file("runs/run/metrics.json"))
        assert metrics["cost"]["tokens_at_most"] >= server.tokens["prompt"] + server.tokens["completion"]
    assert s3.cat_file("runs/run/regen.json") == (tmp_path / "local" / "regen.json").read_bytes()
    assert read_json(tmp_path / "local" / "metrics.json")["kept"] == metrics["kept"]


def test_what_another_process_writes_into_the_bucket_is_seen(s3: Any, tmp_path: Path) -> None:
    """The journal's writer is a process of its own: what a client remembers of a listing is out of date."""
    bucket = Bucket("s3://runs/run", tmp_path, WHOLE)
    for number in range(3):
        s3.pipe_file(f"runs/run/journal.jsonl/{number:010d}", b"%d\n" % number)
        assert len(list(bucket.segments("journal.jsonl").read())) == number + 1
    bucket.remove("journal.jsonl")
    assert not s3.find("runs/run")


def test_a_bucket_that_is_not_there_is_one_line(s3: Any) -> None:
    with standin(StandIn.resolve(TEACHER)) as server:
        found = done("s3://nowhere/run", server)
    assert found.returncode == 2
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert "s3://nowhere/run" in line
    assert "Traceback" not in found.stderr
