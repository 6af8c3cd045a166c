"""What the driver hands to its workers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.plan import Plan


@dataclass(frozen=True)
class Job:
    """Everything a worker needs, resolved in the driver."""

    settings: TrainSettings
    plan: Plan
    template: PromptTemplate
    template_used: bool  # whether any record to learn takes it: one that is no chat, or any without a chat template
    arguments: dict[str, Any]
    output_dir: str
    token: str  # name of a file in output_dir that every worker must see
    restart_from: str | None
    may_lose_nodes: bool  # whether the cluster has more nodes than the driver's, or can start some
    records: Any  # ObjectRef of (training records, held-out records)
    model_source: str  # the model's name, or its absolute path: a worker has another working directory
    times: dict[str, float]  # wall-clock seconds at which each stage of the start was reached
