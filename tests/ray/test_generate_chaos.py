"""What is left of a run whose processes are killed, and whether it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_generate import CLASSIC, read_json, read_lines, run

from alpaca_ray.generate.run import make_plan
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB = Path(__file__).parents[2] / "jobs" / "generate.py"
TARGET = 700
KILLS = 10
TEACHER = {"latency": 0.6, "jitter": 0.6, "rate_429": 0.05, "retry_after": 0.1, "rate_500": 0.05, "tasks": 3}
# Machine examples: what prompts show depends on what was kept before, which a kill must not change.
GIVEN: dict[str, Any] = {
    "num_instructions_to_generate": TARGET,
    "max_in_flight": 12,
    "num_clients": 2,
    "num_cpus": 1,
    "num_prompt_instructions": 4,
    "machine_examples": 2,
    "max_tokens_total": 100_000_000,
    **CLASSIC,
}


def command(folder: Path, server: StandInServer) -> list[str]:
    given = {**GIVEN, "output_dir": str(folder), "base_url": server.url, "max_retries": 50}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(JOB), *flags]


def kill_everything(driver: psutil.Process) -> None:
    """Kill a driver and every process of the cluster that it started, none of which can say goodbye."""
    family = [driver, *driver.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)


def answered(folder: Path) -> set[int]:
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[1:-1]
    return {json.loads(line)["request_id"] for line in lines}


def undisturbed(folder: Path, server: StandInServer) -> tuple[bytes, Counter[str]]:
    done = subprocess.run(command(folder, server), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (folder / "regen.json").read_bytes(), Counter(server.answered)


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_ten_times_ends_as_one_that_never_was(tmp_path: Path) -> None:
    with standin(StandIn.resolve(TEACHER)) as server:
        expected, _ = undisturbed(tmp_path / "whole", server)
    chance = random.Random(4)
    folder = tmp_path / "out"
    with standin(StandIn.resolve(TEACHER)) as server:
        known: set[int] = set()
        asked: Counter[str] = Counter()
        for number in range(KILLS + 1):
            before = {row["request_id"]: row for row in read_lines_safely(folder)}
            assert known <= set(before), "an answer that was durable is gone"
            journaled = {row["prompt_sha"] for row in before.values()}
            asked = Counter(server.answered)
            child = subprocess.Popen(
                [*command(folder, server), *(["--resume"] if number else [])],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            driver = psutil.Process(child.pid)
            if number == KILLS:
                _, errors = child.communicate(timeout=300)
                assert child.returncode == 0, errors
            else:
                wait_for_answers(folder, child, len(before) + 1)
                time.sleep(chance.uniform(0.0, 1.5))
                known = answered(folder)
                if chance.random() < 0.5:
                    kill_everything(driver)
                else:  # the driver alone: its cluster has to notice
                    family = driver.children(recursive=True)
                    child.kill()
                    wait_until_gone(family)
                child.communicate(timeout=30)
                known |= answered(folder)
            again = {prompt for prompt, count in server.answered.items() if count > asked[prompt] and asked[prompt]}
            sent_again = {digest_of(prompt) for prompt in again} & journaled
            assert not sent_again, "a request with a durable answer was sent again"
        assert (folder / "regen.json").read_bytes() == expected
        metrics = read_json(folder / "metrics.json")
        served = server.tokens["prompt"] + server.tokens["completion"]
    assert metrics["cost"]["tokens_at_most"] >= served, "what was under way at a kill counts in full"
    assert read_json(folder / "run.json")["complete"] is True


def test_a_killed_client_costs_nothing_but_what_it_had_under_way(ray_cluster: None, tmp_path: Path) -> None:
    with standin(StandIn.resolve(TEACHER)) as server:
        run(tmp_path / "whole", server, **GIVEN, max_retries=50)
    with standin(StandIn.resolve(TEACHER)) as server:
        child = subprocess.Popen(
            command(tmp_path / "out", server), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for answers in (5, 30, 60):
            wait_for_answers(tmp_path / "out", child, answers)
            family = psutil.Process(child.pid).children(recursive=True)
            clients = [process for process in family if "AskTeacher" in name_of(process)]
            assert clients
            clients[0].kill()
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
        metrics = read_json(tmp_path / "out" / "metrics.json")
        served = server.tokens["prompt"] + server.tokens["completion"]
    assert (tmp_path / "out" / "regen.json").read_bytes() == (tmp_path / "whole" / "regen.json").read_bytes()
    rows = read_lines(tmp_path / "out" / "journal.jsonl")[1:]
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert metrics["cost"]["tokens_at_most"] >= served


NODES = """
import json, os, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from alpaca_ray.generate.pipeline import generate
from alpaca_ray.settings.generate import GenerateSettings

folder, url, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")

def kill_one():
    journal = os.path.join(folder, "journal.jsonl")
    while not os.path.isfile(journal) or open(journal).read().count("\\n") < 20:
        time.sleep(0.05)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("killed", flush=True)

if len(sys.argv) > 4:
    threading.Thread(target=kill_one, daemon=True).start()
generate(GenerateSettings.resolve({**given, "output_dir": folder, "base_url": url, "max_retries": 50}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.timeout(600)
def test_a_killed_node_costs_nothing_but_what_it_had_under_way(ray_cluster: None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    given = {**GIVEN, "num_clients": 6}
    with standin(StandIn.resolve(TEACHER)) as server:
        run(tmp_path / "whole", server, **given, max_retries=50)
    # An address that is not the loopback's: clients go to every node.
    found = [entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == socket.AF_INET]
    host = next((entry.address for entry in found if not entry.address.startswith("127.")), None)
    if host is None:
        pytest.skip("this machine has no address but the loopback's")
    with standin(StandIn.resolve({**TEACHER, "host": host})) as server:
        done = subprocess.run(
            [sys.executable, "-c", NODES, str(tmp_path / "out"), server.url, json.dumps(given), "kill"],
            capture_output=True,
            text=True,
            timeout=400,
            env=environment,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed" in done.stdout
    assert (tmp_path / "out" / "regen.json").read_bytes() == (tmp_path / "whole" / "regen.json").read_bytes()


def read_lines_safely(folder: Path) -> list[dict[str, Any]]:
    journal = folder / "journal.jsonl"
    if not journal.is_file():
        return []
    return [json.loads(line) for line in journal.read_bytes().split(b"\n")[1:-1]]


def wait_for_answers(folder: Path, child: subprocess.Popen[str], count: int) -> None:
    while len(read_lines_safely(folder)) < count:
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)


def wait_until_gone(family: list[psutil.Process]) -> None:
    """Wait for a cluster to notice that its driver is gone; two agents of Ray's own take much longer."""
    agents = [process for process in family if "Agent" in name_of(process)]
    _, alive = psutil.wait_procs([process for process in family if process not in agents], timeout=60)
    assert not alive, f"the cluster of a driver that was killed lives on: {alive}"
    for process in agents:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def name_of(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def digest_of(prompt: str) -> str:
    from alpaca_ray.generate.prompt import Prompt

    return Prompt(0, [], prompt).digest


def test_the_plan_of_the_chaos_draws_from_the_pool() -> None:
    assert make_plan(GenerateSettings.resolve({**GIVEN, "base_url": "http://127.0.0.1:1/v1"})).prompts.draws
