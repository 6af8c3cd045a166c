"""A job's workers under Ray Train: how many, what becomes of a lost one, and where checkpoints are reported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpaca_ray import cluster
from alpaca_ray.errors import AlpacaRayError, find_cause
from alpaca_ray.signals import interrupts_later
from alpaca_ray.train import publish
from alpaca_ray.train.job import Job
from alpaca_ray.train.loop import run_worker

# A node that has not answered by then is left to the workers' own look, which each of them takes.
_LOOK_SECONDS = 60
_STOP_SECONDS = 2.0  # a job that is stopped is killed after three


class Trainer(TorchTrainer):
    """Ray Train's trainer, which an interrupt ends as it ends any other code: by ``KeyboardInterrupt``."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray Train's own handler ends the process from inside, with code 1 and without a word.
        self._controller = controller

    def stop(self) -> None:
        """Stop the workers, if they are there; an interrupt in the meantime waits."""
        if self._controller is not None:
            with interrupts_later(), suppress(ray.exceptions.RayError):  # the actor goes with them
                ray.get(self._controller.abort.remote(), timeout=_STOP_SECONDS)


def launch(job: Job, bundle: dict[str, float]) -> dict[str, Any]:
    """Run a job's workers to their end, and return what the first of them returned.

    Args:
        bundle: what a worker reserves, by Ray's names.

    Raises:
        AlpacaRayError: what ended the run, where it is one of ours.
        KeyboardInterrupt: it was interrupted; the workers are stopped.
    """
    if cluster.node_count() > 1:
        check_shared(Path(job.output_dir), job.token, bundle)
    plan = job.plan
    trainer = Trainer(
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
    ray_train = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}  # how soon the end of the run is noticed
    if not job.may_lose_nodes:  # nothing to watch: the only node takes the driver with it
        ray_train["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    try:
        result = _fit(trainer, ray_train)
    except KeyboardInterrupt:
        trainer.stop()
        raise
    values = result.return_value or {}
    if isinstance(values.get("error"), AlpacaRayError):
        raise values["error"]
    return dict(values)


def _fit(trainer: Trainer, variables: Mapping[str, str]) -> Any:
    try:
        with environment(variables):
            return trainer.fit()
    except Exception as error:
        known = find_cause(error)
        if known is None:
            raise
        raise known from error


def check_shared(folder: Path, token: str, bundle: Mapping[str, float]) -> None:
    """Check on every node that has room for a worker that the output folder is the one the driver sees.

    Raises:
        OutputError: on one of them it is not.
    """
    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in bundle.items())
    ]
    look = ray.remote(num_cpus=0)(publish.not_shared)
    there = [NodeAffinitySchedulingStrategy(node_id=node, soft=False) for node in nodes]
    answers = [look.options(scheduling_strategy=strategy, max_retries=0).remote(folder, token) for strategy in there]
    done, _ = ray.wait(answers, num_returns=len(answers), timeout=_LOOK_SECONDS) if answers else ([], [])
    for answer in done:
        with suppress(ray.exceptions.RayError):  # a node that has gone since
            error = ray.get(answer)
            if error is not None:
                raise error


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set those environment variables that are not set yet until the block ends: the next run may want others."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
