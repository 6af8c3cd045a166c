"""A whole job killed; nodes that come, are taken away with a warning, and die. Processes of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_ray.records import read_records
from alpaca_ray.train.progress import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

JOB = Path(__file__).parents[2] / "jobs" / "train.py"

# A cluster whose head takes no workers; the job runs beside `scene`, which changes the cluster.
FRAME = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
import ray
from ray.cluster_utils import Cluster
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import publish
from alpaca_ray.train.progress import read_metrics
from alpaca_ray.train.runner import train

settings = parse_settings(TrainSettings, sys.argv[1:], description="test")
output = Path(settings.output_dir)
store = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
first = cluster.add_node(num_cpus=1, **store)
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
seen = {}

def rows(name="metrics.jsonl"):
    return read_metrics(output, name)

def wait_for(what, seconds=300):
    end = time.time() + seconds
    while not what():
        assert thread.is_alive(), "the run ended"
        assert time.time() < end, f"waited in vain, seen so far: {seen}"
        time.sleep(0.01)

def last_step():
    found = [row["step"] for row in rows()]
    return max(found, default=0)

SCENE

# Nodes are started from the main thread: they end with the thread that started them.
done = {}
thread = threading.Thread(target=lambda: done.update(train(settings)), daemon=True)
thread.start()
scene()
thread.join()
print(json.dumps({"steps": done["steps"], **seen}))
ray.shutdown()
cluster.shutdown()
"""

PREEMPTION = """
def scene():
    wait_for(lambda: last_step() >= 20)
    assert not list(output.glob("checkpoint-*"))
    node = first.node_id if hasattr(first, "node_id") else first._node_id
    command = ["ray", "drain-node", "--address", cluster.address, "--node-id", node, "--reason",
               "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "120"]
    subprocess.run(command, check=True, capture_output=True)
    seen["drained at"] = last_step()
    wait_for(lambda: publish.newest_checkpoint(output))
    seen["warned at"] = int(publish.newest_checkpoint(output).name.split("-")[1])
    wait_for(lambda: last_step() > seen["warned at"] + 5)  # it goes on meanwhile
    cluster.add_node(num_cpus=1, **store)
    cluster.remove_node(first, allow_graceful=False)
    seen["gone at"] = last_step()
    wait_for(lambda: last_step() < seen["gone at"] and last_step() > 0)
    seen["goes on from"] = last_step()
"""

ELASTIC = """
def workers():
    found = rows("samples.jsonl")
    newest = max((row["step"] for row in found), default=0)
    return {row["worker"] for row in found if row["step"] == newest - 1}

def scene():
    wait_for(lambda: last_step() >= 30)
    seen["at first"] = sorted(workers())
    second = cluster.add_node(num_cpus=1, **store)
    wait_for(lambda: workers() == {0, 1})
    seen["grown at"] = last_step()
    wait_for(lambda: last_step() > seen["grown at"] + 30)
    cluster.remove_node(second, allow_graceful=False)
    wait_for(lambda: workers() == {0})
    seen["shrunk at"] = last_step()
"""


def text_of(tiny_llama: Path, folder: Path, *more: str) -> list[str]:
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:22]
    data = folder / "data.json"
    data.write_text(json.dumps([{k: r[k] for k in ("instruction", "input", "output")} for r in records]))
    text = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 0 --no_bf16 --logging_steps 1 --threads 1 "
        "--learning_rate 0.01 --batch_size 6 --lr_scheduler_type constant"
    )
    return [*text.split(), *more]


def play(scene: str, flags: list[str]) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-c", FRAME.replace("SCENE", scene), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def test_a_warned_node_costs_no_step_that_was_taken_before_the_warning(tiny_llama: Path, tmp_path: Path) -> None:
    flags = text_of(tiny_llama, tmp_path, "--save_steps", "100000", "--max_steps", "1500", "--max_failures", "0")
    content = play(PREEMPTION, [*flags, "--output_dir", str(tmp_path / "out")])
    assert content["steps"] == 1500
    assert content["warned at"] >= content["drained at"]
    assert content["goes on from"] == content["warned at"]
    assert [row["step"] for row in read_metrics(tmp_path / "out")] == list(range(1, 1501))


def test_workers_become_more_and_fewer_and_each_sample_is_seen_once_an_epoch(tiny_llama: Path, tmp_path: Path) -> None:
    flags = text_of(tiny_llama, tmp_path, "--save_steps", "20", "--max_steps", "3000", "--record_samples")
    elastic = ["--num_workers", "1:2", "--elastic_resize_interval", "2", "--output_dir", str(tmp_path / "out")]
    content = play(ELASTIC, [*flags, *elastic])
    assert content["at first"] == [0]
    assert content["steps"] == 3000
    rows = read_metrics(tmp_path / "out", "samples.jsonl")
    seen: dict[int, Counter[str]] = {}
    for row in rows:
        seen.setdefault((row["step"] - 1) // 4, Counter()).update(row["ids"])
    assert len(seen) == 750
    assert all(counts == Counter(set(seen[0])) for counts in seen.values())
    assert len(seen[0]) == 22


def test_a_whole_job_killed_and_resumed_ends_with_the_same_bits(tiny_llama: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    flags = text_of(tiny_llama, tmp_path, "--save_steps", "7", "--max_steps", "120", "--lora_dropout", "0.1")
    command = [sys.executable, str(JOB), *flags, "--output_dir"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*command, str(undisturbed)], check=True, capture_output=True, timeout=300, env=environment)
    step = random.randrange(8, 90)
    with subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, env=environment) as job:
        end = time.time() + 300
        while not any(row["step"] >= step for row in read_metrics(killed)):
            assert job.poll() is None, "the job ended before it could be killed"
            assert time.time() < end
            time.sleep(0.005)
        for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
            if process.is_running():
                os.kill(process.pid, signal.SIGKILL)
    assert not (killed / "run.json").exists(), f"killed too late, at step {step}"
    done = subprocess.run(
        [*command, str(killed), "--resume"], check=True, capture_output=True, text=True, timeout=300, env=environment
    )
    assert "Restarting from" in done.stdout
    losses = [[row["loss"] for row in read_metrics(folder)] for folder in (undisturbed, killed)]
    assert losses[0] == losses[1], f"killed at step {step}"
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (undisturbed, killed)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".")]
