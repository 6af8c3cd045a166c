"""Serve a base model and its LoRA adapters behind an OpenAI-compatible API, until Ctrl-C."""

from __future__ import annotations

import signal
import threading

from alpaca_ray import cluster
from alpaca_ray.console import say, show_settings
from alpaca_ray.errors import run_main
from alpaca_ray.models import check_model_name
from alpaca_ray.serve.adapter_source import resolve_adapters
from alpaca_ray.serve.local import local_server
from alpaca_ray.serve.registry import catalogue_of
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.serve import ServeSettings


def main() -> None:
    settings = parse_settings(ServeSettings, description=__doc__ or "")
    show_settings("serve", settings)
    check_model_name(settings.base_model, flag="--base_model")  # whatever is wrong is said before a cluster starts
    adapters = resolve_adapters(settings.lora_weights) if settings.lora_weights else None
    args = settings.to_args().model_copy(update={"adapters": adapters})
    catalogue = catalogue_of(args)
    stop = threading.Event()
    cluster.connect(show_workers=False)
    try:
        with local_server(args, host=settings.server_name, port=settings.server_port) as url:
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, lambda *_: stop.set())
            say(f"models: {', '.join(catalogue.names)}")
            say(f"serving at {url} (Ctrl-C stops it)")
            stop.wait()
            say("stopping")
    finally:
        cluster.shut_down()


if __name__ == "__main__":
    run_main(main)
