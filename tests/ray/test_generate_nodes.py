"""Where clients run on a cluster of several nodes. A process of its own: the session's cluster has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCENE = """
import json, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from ray._private.state import actors
from alpaca_ray.generate.pipeline import generate
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.testing.teacher import StandIn, standin

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
for _ in range(2):
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
seen = set()

def watch():
    while True:
        found = [actor for actor in actors().values() if "AskTeacher" in actor["ActorClassName"]]
        seen.update((actor["ActorID"], actor["Address"]["NodeID"]) for actor in found if actor["Address"]["NodeID"])
        time.sleep(0.3)

threading.Thread(target=watch, daemon=True).start()
settings = {"output_dir": sys.argv[1], "num_instructions_to_generate": 1000, "max_requests": 24, "num_cpus": 1}
with standin(StandIn.resolve({"latency": 1.0})) as server:
    generate(GenerateSettings.resolve({**settings, "base_url": server.url, "max_in_flight": 6, "num_clients": 6}))
print(json.dumps([len(seen), sorted({node for _, node in seen}), ray.get_runtime_context().get_node_id()]))
ray.shutdown()
cluster.shutdown()
"""


def test_clients_of_a_teacher_on_this_machine_all_run_on_the_drivers_node(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", SCENE, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    clients, nodes, driver = json.loads(done.stdout.splitlines()[-1])
    assert clients == 6
    assert nodes == [driver]
