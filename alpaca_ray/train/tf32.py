"""TF32 on GPUs that lack it: it changes the speed and no result, so it is dropped, not refused. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alpaca_ray.train.plan import Plan

_TYPE = "accelerator_type:"
_OLDER = frozenset({"K80", "P4", "P100", "T4", "V100"})  # than Ampere, by the names that Ray gives them


def without(plan: Plan, nodes: Sequence[tuple[Mapping[str, float], int]]) -> Plan:
    """Return the plan without TF32, and with a warning, where a worker may get a GPU that has none.

    Args:
        nodes: each node's resources, and how many of its kind there are or may be started.
    """
    kinds = {name.removeprefix(_TYPE) for node, _ in nodes for name in node if name.startswith(_TYPE)}
    older = sorted(kinds & _OLDER)
    if not (plan.tf32 and plan.use_gpu and older):
        return plan
    line = f"--tf32 has no effect: {', '.join(older)} GPUs are older than Ampere and have no TF32"
    return replace(plan, tf32=None, warnings=[*plan.warnings, line])


def usable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return TrainingArguments' values for this worker's GPU, of whose kind Ray may not have known."""
    from transformers.utils.import_utils import is_torch_tf32_available

    if not arguments.get("tf32") or is_torch_tf32_available():
        return dict(arguments)
    logging.getLogger(__name__).warning("--tf32 has no effect: this GPU has no TF32")
    return {**arguments, "tf32": None}
