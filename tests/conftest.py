"""Fixtures that every kind of test shares: tiny models, and one Ray cluster for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca_ray.testing.tiny import make_tiny_model

# Live torch processes must never have more threads than the machine has cores; tests start several of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A cluster of the tests' own, also where `ray start` has left one running on this machine.
os.environ["RAY_ADDRESS"] = "local"


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 100 K parameters with its tokenizer (no padding token)."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT of 100 K parameters with its tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-opt", "opt")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for all tests of the session."""
    from alpaca_ray import cluster

    cluster.connect(minimum_cpus=4)
    yield
    cluster.shut_down()
