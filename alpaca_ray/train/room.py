"""Whether a cluster has room for a run's workers, and what it lacks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alpaca_ray.console import as_bytes

# Device memory in GiB, by the names that Ray gives to accelerators; the smaller one where a name means two.
_GPU_GIB = {
    "P4": 8,
    "T4": 16,
    "P100": 16,
    "V100": 16,
    "K80": 12,
    "A10G": 24,
    "L4": 24,
    "L40S": 48,
    "A100": 40,
    "A100-40G": 40,
    "A100-80G": 80,
    "H100": 80,
    "H20": 96,
    "H200": 141,
    "B200": 180,
}
_TYPE = "accelerator_type:"

Node = Mapping[str, float]  # resources, as Ray names them; `memory` in bytes


def lacking(nodes: Sequence[tuple[Node, int]], bundle: Mapping[str, float], workers: int, memory: int) -> list[str]:
    """Return what is missing, one line each; empty where everything fits.

    Args:
        nodes: each node's resources, and how many of its kind there are or may be started.
        bundle: what each worker reserves.
        memory: bytes that a worker needs: on each of its GPUs, or, without one, of the node.
    """
    lines = []
    for name, amount in bundle.items():
        there = sum(node.get(name, 0) * count for node, count in nodes)
        if amount * workers > there:
            lines.append(f"{amount * workers:g} {name} are needed, and the cluster has {there:g}")
    if lines:
        return lines
    places = sum(_places(node, bundle) * count for node, count in nodes)
    if places < workers:
        each = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        return [f"{workers} workers with {each} each are needed, and its nodes have room for {places}"]
    if bundle.get("GPU"):
        return _gpu_memory(nodes, bundle, workers, memory)
    places = sum(
        min(_places(node, bundle), int(node["memory"] // memory) if "memory" in node else workers) * count
        for node, count in nodes
    )
    if places < workers:
        most = max((node.get("memory", 0) for node, _ in nodes), default=0)
        return [
            f"{as_bytes(memory)} of memory a worker are needed, and its nodes (the largest with {as_bytes(most)}) have "
            f"room for {places} of {workers} workers"
        ]
    return []


def _places(node: Node, bundle: Mapping[str, float]) -> int:
    return int(min(node.get(name, 0) // amount for name, amount in bundle.items() if amount))


def _gpu_memory(nodes: Sequence[tuple[Node, int]], bundle: Mapping[str, float], workers: int, memory: int) -> list[str]:
    """Judge by the types that Ray knows; a GPU of another kind counts as large enough."""
    places, small = 0, []
    for node, count in nodes:
        kinds = [name.removeprefix(_TYPE) for name in node if name.startswith(_TYPE)]
        sizes = [_GPU_GIB[kind] * 1024**3 for kind in kinds if kind in _GPU_GIB]
        if sizes and max(sizes) < memory:
            small += kinds
        else:
            places += _places(node, bundle) * count
    if places >= workers:
        return []
    return [
        f"{as_bytes(memory)} a GPU are needed, which {', '.join(sorted(set(small)))} has not: GPUs that may have are "
        f"enough for {places} of {workers} workers"
    ]
