"""cluster.yaml against Ray's own schema, before and after the defaults are merged in."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_valid_as_it_stands_and_after_merging(config: dict) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, {**schema, "required": []})  # a typo in a key would hide behind the merged defaults
    validate_config(prepare_config(config))


def test_head_is_cpu_and_workers_are_spot_gpus(config: dict) -> None:
    types = config["available_node_types"]
    assert "GPU" not in types[config["head_node_type"]]["resources"]
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    assert all(node["resources"]["GPU"] >= 1 and node["min_workers"] == 0 for node in workers.values())
    assert all(node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for node in workers.values())
    assert max(node["max_workers"] for node in workers.values()) <= config["max_workers"]


def test_own_head_setup_keeps_what_the_autoscaler_needs(config: dict) -> None:
    assert any("boto3" in command for command in config["head_setup_commands"])
    assert any("--autoscaling-config" in command for command in config["head_start_ray_commands"])


def test_ray_version_is_the_one_that_is_pinned(config: dict) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert config["docker"]["image"].startswith(f"rayproject/ray:{pins['ray']}-")
    assert pins["torch"] == "2.13.0"
