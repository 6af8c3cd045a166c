"""The only place that initialises Ray, and the checks that run before work starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray

from alpaca_ray import signals
from alpaca_ray.errors import ClusterError

# Ray takes 30 % of memory for its object store by default; rows of text need far less, and models need the rest.
_OBJECT_STORE_CAP = 2 * 1024**3
_OBJECT_STORE_SHARE = 0.1


def connect(*, minimum_cpus: int = 2, show_workers: bool = True) -> None:
    """Connect to the running cluster (a submitted job's, ``RAY_ADDRESS``, or one started here), or start a local one.

    ``RAY_ADDRESS=local`` always starts one.

    A cluster of our own is capped in object store and has at least ``minimum_cpus`` logical CPUs, so that the actors of
    one job never wait for each other on a small machine. Calling it twice does nothing.

    Args:
        minimum_cpus: logical CPUs that a cluster of our own has at least.
        show_workers: print what workers print; without it their output is in Ray's log folder only.

    Raises:
        ClusterError: a cluster was named or found and cannot be reached.
    """
    if ray.is_initialized():
        return
    # Ray's note that a cluster asks for a token; the README says what that means for whoever submits to one.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    quiet: dict[str, Any] = {"log_to_driver": show_workers, "logging_level": "warning"}
    try:
        address = os.environ.get("RAY_ADDRESS") or _address_of_local_cluster()
        if address and address != "local":
            where: dict[str, Any] = {"address": address}
        else:
            cpus = max(minimum_cpus, os.cpu_count() or 1)
            where = {"address": "local", "num_cpus": cpus, "object_store_memory": _object_store_bytes()}
        with signals.kept():
            ray.init(**where, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"cannot connect to Ray: {error}") from error


def starts_own() -> bool:
    """Whether ``connect`` will start a cluster of our own, of one node."""
    address = os.environ.get("RAY_ADDRESS") or _address_of_local_cluster()
    return not ray.is_initialized() and (not address or address == "local")


def node_count() -> int:
    """Return how many nodes of the cluster are alive."""
    return sum(1 for node in ray.nodes() if node["Alive"])


def may_lose_nodes() -> bool:
    """Whether nodes may go while the driver stays: there are others than its own, or the autoscaler can start some."""
    return node_count() > 1 or bool(_startable_resources())


def total_resources() -> dict[str, float]:
    """Return the cluster's resources: those of its nodes, and of the nodes that its autoscaler may start."""
    totals: dict[str, float] = dict(ray.cluster_resources())
    for name, amount in _startable_resources().items():
        totals[name] = max(totals.get(name, 0.0), amount)
    return totals


def node_kinds() -> list[tuple[dict[str, float], int]]:
    """Return the resources of each kind of node, and how many of them there are or the autoscaler may start."""
    alive = [(dict(node["Resources"]), 1) for node in ray.nodes() if node["Alive"]]
    startable = [
        ({name: float(amount) for name, amount in group.resources.items()}, max(1, group.max_count))
        for group in _node_groups()
    ]
    # Nodes that are up may be of these groups: they count once, as whichever there are more of.
    return startable if sum(count for _, count in startable) >= len(alive) else alive


def has_gpus() -> bool:
    """Whether the cluster has a GPU, or can start a node that has one."""
    return total_resources().get("GPU", 0) > 0


def check_fits(bundles: Sequence[Mapping[str, float]], what: str) -> None:
    """Check that the cluster can ever hold these resource bundles together.

    Raises:
        ClusterError: it cannot; the text says what is missing. Without this check Ray would wait for ever.
    """
    totals = total_resources()
    for name in sorted({name for bundle in bundles for name in bundle}):
        needed = sum(bundle.get(name, 0) for bundle in bundles)
        if needed > totals.get(name, 0):
            raise ClusterError(
                f"{what} needs {needed:g} {name}, and this cluster has {totals.get(name, 0):g}: "
                "ask for fewer workers or add nodes"
            )


def shut_down() -> None:
    """Disconnect, and stop the cluster where ``connect`` started one."""
    if ray.is_initialized():
        ray.shutdown()


def _address_of_local_cluster() -> str | None:
    """Return ``auto`` where ``ray start`` left a cluster running on this machine.

    ``ray.init()`` alone would do the same, but then refuses the limits that a cluster of our own needs.
    """
    from ray._private.services import canonicalize_bootstrap_address

    with suppress(ConnectionError, RuntimeError, ValueError):
        return "auto" if canonicalize_bootstrap_address(None) else None
    return None


def _object_store_bytes() -> int:
    import psutil

    return max(256 * 1024**2, min(_OBJECT_STORE_CAP, int(psutil.virtual_memory().total * _OBJECT_STORE_SHARE)))


def _startable_resources() -> dict[str, float]:
    """Return what the autoscaler's node types could add up to at their maximum; empty without an autoscaler."""
    totals: dict[str, float] = {}
    for group in _node_groups():
        count = group.max_count if group.max_count > 0 else 1
        for name, amount in group.resources.items():
            totals[name] = totals.get(name, 0.0) + float(amount) * count
    return totals


def _node_groups() -> list[Any]:
    """Return the node types that the autoscaler knows; none without an autoscaler."""
    from ray._private.state import state

    return list(getattr(state.get_cluster_config(), "node_group_configs", None) or [])
