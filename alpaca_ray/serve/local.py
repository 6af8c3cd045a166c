"""The application on this machine for as long as a block runs."""

from __future__ import annotations

import logging
import re
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from alpaca_ray import errors
from alpaca_ray.errors import AlpacaRayError, ClusterError, SettingsError
from alpaca_ray.models import resolve_model
from alpaca_ray.serve.app import make_app
from alpaca_ray.settings.serve import ServeArgs

_HEALTH_TIMEOUT_S = 60.0
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@contextmanager
def local_server(args: ServeArgs, *, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serve a model and its adapters, and yield the base URL for OpenAI clients (``http://127.0.0.1:PORT/v1``).

    Needs a connected Ray. Where Serve already runs in this cluster, its port is used, with a route prefix of its own;
    otherwise Serve is started on ``port`` (None: a free one), and stopped in the end, so that the memory is free again.

    Raises:
        UserError: the arguments are wrong (as ``make_app``), or the port is taken.
        ClusterError: the application did not start.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # Serve tells its own progress in this process
    resolve_model(args.base_model, flag="base_model")  # what has to be fetched is fetched where its progress is seen
    application = make_app(args)
    name = f"alpaca-{uuid.uuid4().hex[:8]}"
    client = _get_global_client(raise_if_no_controller_running=False)
    started = client is None
    if started:
        port = _usable_port(host, port)
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=_QUIET)
        prefix = ""
    else:
        host, port = client.http_config.host or host, client.http_config.port
        prefix = f"/{name}"
    reachable = "127.0.0.1" if host in ("0.0.0.0", "localhost") else host
    root = f"http://{reachable}:{port}{prefix}"
    try:
        try:
            serve.run(application, name=name, route_prefix=prefix or "/", logging_config=_QUIET)
        except RuntimeError as error:
            raise _why_not_started(name, error) from error
        _wait_until_healthy(f"{root}/health")
        yield f"{root}/v1"
    finally:
        serve.delete(name)
        if started:
            serve.shutdown()


def _why_not_started(name: str, error: RuntimeError) -> AlpacaRayError:
    """Return our own error that ended a replica, which Serve passes on as the text of a traceback only."""
    application = serve.status().applications.get(name)
    for deployment in application.deployments.values() if application else ():
        for kind, text in re.findall(r"^alpaca_ray\.errors\.(\w+): (.+)$", deployment.message, re.MULTILINE):
            cause = getattr(errors, kind, None)
            if isinstance(cause, type) and issubclass(cause, AlpacaRayError):
                return cause(text)
    return ClusterError(f"the server did not start: {error}")


def _wait_until_healthy(url: str) -> None:
    """Wait until the proxy knows the route; the replicas themselves already run."""
    deadline = time.monotonic() + _HEALTH_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"the server does not answer at {url}: {error}") from error
        time.sleep(0.05)


def _usable_port(host: str, port: int | None) -> int:
    """Return ``port``, or a free one, after trying to listen on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}; give another port") from error
        return int(probe.getsockname()[1])
