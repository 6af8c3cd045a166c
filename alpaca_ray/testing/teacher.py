"""A stand-in teacher: an OpenAI-compatible HTTP server with a seeded supply of answers and settable misbehaviour.

``python -m alpaca_ray.testing.teacher --port 8001 --latency 0.5`` runs it; ``with standin(StandIn()) as server`` runs
it in a thread of a test. ``GET /stats`` tells what it was asked (``?at_least=N&skip=SECONDS``: see ``Arrivals.load``).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alpaca_ray.errors import SettingsError, run_main
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.testing.server import StandInServer
from alpaca_ray.testing.stand_in import StandIn

__all__ = ["StandIn", "StandInServer", "standin"]


@contextmanager
def standin(settings: StandIn | None = None) -> Iterator[StandInServer]:
    """Run a stand-in teacher in a thread and yield it, listening; it is stopped at the end."""
    import uvicorn

    server = StandInServer(settings or StandIn())
    listener = _listen(server.settings)
    server.url = f"http://{server.settings.host}:{listener.getsockname()[1]}/v1"
    config = uvicorn.Config(
        server.app,
        http=server.connections.protocol(),
        interface="asgi3",
        ws="none",
        proxy_headers=False,
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=600,  # an idle connection that closes by itself looks like a fault that nobody asked for
        timeout_graceful_shutdown=1,
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        runner.should_exit = True
        thread.join()
        listener.close()


def _listen(settings: StandIn) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise SettingsError(f"--host {settings.host} --port {settings.port}: {error.strerror}") from error
    listener.listen(1024)
    return listener


def main() -> None:
    """Run the stand-in teacher until it is interrupted."""
    settings = parse_settings(StandIn, description="A stand-in teacher: an OpenAI-compatible server for tests.")
    with standin(settings) as server:
        print(f"stand-in teacher at {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    run_main(main)
