"""The Serve application: a thin HTTP ingress, and deployments of the model behind it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray import serve

from alpaca_ray import cluster
from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.machine import cores
from alpaca_ray.models import EMBEDDED, resolve_model
from alpaca_ray.serve.ingress import Ingress
from alpaca_ray.serve.model_server import model_deployment
from alpaca_ray.serve.registry import Catalogue, catalogue_of, foreign
from alpaca_ray.settings.serve import ServeArgs

logger = logging.getLogger("ray.serve")


def build_app(args: dict[str, Any]) -> serve.Application:
    """Build the application; ``import_path`` of the Serve YAML files.

    What is wrong with the arguments is also printed as one line: Serve itself shows it inside a traceback only, and
    goes on waiting for another configuration.

    Raises:
        AlpacaRayError: as ``make_app``.
    """
    try:
        return make_app(ServeArgs.parse(args))
    except AlpacaRayError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise


def make_app(args: ServeArgs) -> serve.Application:
    """Return the application that these arguments describe.

    Everything that can be wrong with the arguments is found here, before any replica starts: a replica that failed
    would be started again and again.

    Raises:
        SettingsError: two models of one name.
        ModelError: the base model does not exist, or an adapter is not one that can be served.
        DataError: a prompt template cannot be read.
        ClusterError: the cluster can never hold the model.
    """
    catalogue = catalogue_of(args)
    # Each replica finds `embedded` for itself: the cache folder of this machine means nothing on another.
    base = args.base_model if args.base_model == EMBEDDED else resolve_model(args.base_model, flag="base_model")
    _report(args, catalogue, base)
    gpus = _gpus(args)
    if ray.is_initialized():
        cluster.check_fits([{"CPU": args.num_cpus, "GPU": gpus}] * args.num_replicas, "serving")
    model = (
        model_deployment(args.max_loaded_adapters)
        .options(
            num_replicas=args.num_replicas,
            max_ongoing_requests=args.max_ongoing_requests,
            ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": gpus},
            max_constructor_retry_count=2,
            graceful_shutdown_timeout_s=10,
        )
        .bind(args.model_copy(update={"base_model": base}), args.threads or max(1, cores() // args.num_replicas))
    )
    return (
        serve.deployment(Ingress, name="api")
        .options(
            max_ongoing_requests=args.max_ongoing_requests * args.num_replicas,
            ray_actor_options={"num_cpus": 0},
            max_constructor_retry_count=2,
            graceful_shutdown_timeout_s=10,
        )
        .bind(model, args, catalogue)
    )


def _report(args: ServeArgs, catalogue: Catalogue, base: str) -> None:
    if args.adapters and not Path(args.adapters).expanduser().is_dir():
        logger.warning("adapters: %s does not exist, serving the base model alone", Path(args.adapters).absolute())
    for reason in catalogue.skipped:
        logger.warning("not served: %s", reason)
    for adapter in foreign(catalogue, (args.base_model, base)):
        logger.warning("adapter %s: was trained on %s, served on %s", adapter.name, adapter.base_model, args.base_model)


def _gpus(args: ServeArgs) -> float:
    if args.num_gpus != "auto":
        return float(args.num_gpus)
    return 1.0 if ray.is_initialized() and cluster.has_gpus() else 0.0
