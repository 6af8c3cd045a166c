"""A job's workers under Ray Train: how many, what becomes of a lost one, and where checkpoints are reported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from alpaca_ray.errors import AlpacaRayError, find_cause
from alpaca_ray.train.job import Job
from alpaca_ray.train.loop import run_worker


def launch(job: Job, bundle: dict[str, float]) -> dict[str, Any]:
    """Run a job's workers to their end, and return what the first of them returned.

    Args:
        bundle: what a worker reserves, by Ray's names.

    Raises:
        AlpacaRayError: what ended the run, where it is one of ours.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end of the run is noticed
    if not job.may_lose_nodes:  # nothing to watch: the only node takes the driver with it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    plan = job.plan
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=plan.workers if plan.workers == plan.least_workers else (plan.least_workers, plan.workers),
            elastic_resize_monitor_interval_s=job.settings.elastic_resize_interval,
            use_gpu=plan.use_gpu,
            resources_per_worker=bundle,
            placement_strategy="PACK",
        ),
        # Sharded weights are gathered over the CPU, which nccl alone cannot do.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if plan.use_gpu else "gloo"),
        run_config=RunConfig(
            # The run's storage is the output folder itself, so that a checkpoint is reported where it lies.
            name=Path(job.output_dir).name,
            storage_path=str(Path(job.output_dir).parent),
            failure_config=FailureConfig(
                max_failures=job.settings.max_failures, max_preemption_failures=job.settings.max_preemption_failures
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        known = find_cause(error)
        if known is None:
            raise
        raise known from error
    values = result.return_value or {}
    if isinstance(values.get("error"), AlpacaRayError):
        raise values["error"]
    return dict(values)
