"""The Serve application: a thin HTTP ingress, and deployments of the model behind it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray import serve

from alpaca_ray import cluster
from alpaca_ray.models import resolve_model
from alpaca_ray.serve.ingress import Ingress
from alpaca_ray.serve.model_server import model_deployment
from alpaca_ray.serve.registry import Catalogue, catalogue_of, foreign
from alpaca_ray.settings.serve import ServeArgs

logger = logging.getLogger("ray.serve")


def build_app(args: ServeArgs | dict[str, Any]) -> serve.Application:
    """Build the application; ``import_path`` of the Serve YAML files.

    Everything that can be wrong with the arguments is found here, before any replica starts: a replica that failed
    would be started again and again.

    Raises:
        SettingsError: an unknown key, a wrong value, two models of one name.
        ModelError: the base model does not exist, or an adapter is not one that can be served.
        DataError: a prompt template cannot be read.
        ClusterError: the cluster can never hold the model.
    """
    args = ServeArgs.parse(args)
    catalogue = catalogue_of(args)
    resolved = resolve_model(args.base_model, flag="base_model")
    _report(args, catalogue, resolved)
    gpus = _gpus(args)
    if ray.is_initialized():
        cluster.check_fits([{"CPU": args.num_cpus, "GPU": gpus}] * args.num_replicas, "serving")
    local = args.model_copy(update={"base_model": resolved if Path(resolved).is_dir() else args.base_model})
    model = (
        model_deployment(args.max_loaded_adapters)
        .options(
            num_replicas=args.num_replicas,
            max_ongoing_requests=args.max_ongoing_requests,
            ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": gpus},
            max_constructor_retry_count=2,
            graceful_shutdown_timeout_s=10,
        )
        .bind(local, catalogue, args.threads or max(1, _cores() // args.num_replicas))
    )
    return (
        serve.deployment(Ingress, name="api")
        .options(
            max_ongoing_requests=args.max_ongoing_requests * args.num_replicas,
            ray_actor_options={"num_cpus": 0},
            max_constructor_retry_count=2,
            graceful_shutdown_timeout_s=10,
        )
        .bind(model, catalogue)
    )


def _report(args: ServeArgs, catalogue: Catalogue, resolved: str) -> None:
    if args.adapters and not Path(args.adapters).expanduser().is_dir():
        logger.warning("adapters: %s does not exist, serving the base model alone", Path(args.adapters).absolute())
    for adapter in foreign(catalogue, (args.base_model, resolved)):
        logger.warning("adapter %s: was trained on %s, served on %s", adapter.name, adapter.base_model, args.base_model)


def _gpus(args: ServeArgs) -> float:
    if args.num_gpus != "auto":
        return float(args.num_gpus)
    return 1.0 if ray.is_initialized() and cluster.has_gpus() else 0.0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
