"""How well generation fills a teacher's slots and keeps to its limits.

Runs ``jobs/generate.py`` against the stand-in teacher, both as processes of their own that talk HTTP, and reports what
the teacher saw: the rate against the ideal (slots over latency), the share of slots that were busy, the most requests
in any 60 seconds under a rate limit, and how the driver's memory grew. Everything on this machine, so that the teacher
takes its share of the cores too.

    python benchmarks/fanout.py --scenarios latency lognormal rate memory
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any, Literal

import psutil

from alpaca_ray.errors import GenerationError, run_main
from alpaca_ray.machine import cores
from alpaca_ray.settings.base import Settings, setting
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.testing.processes import free_port, running

_ROOT = Path(__file__).parents[1]
_MEGABYTE = 2**20
_RAMP = 5.0  # seconds after the first arrival that are not looked at
_WARM = 0.1  # share of a memory run's requests before its first look


class Benchmark(Settings):
    """What to run, and how much of it."""

    scenarios: list[Literal["latency", "lognormal", "rate", "memory"]] = setting(
        ["latency", "lognormal", "rate", "memory"], "Which of latency, lognormal, rate and memory to run."
    )
    in_flight: int = setting(256, "Requests in flight.", ge=1)
    requests: int = setting(12000, "Requests of the latency run.", ge=100)
    latency: float = setting(1.0, "Seconds of the latency run's teacher.", gt=0)
    lognormal_requests: int = setting(8000, "Requests of the log-normal run.", ge=100)
    lognormal_median: float = setting(2.0, "Median latency of the log-normal run, in seconds.", gt=0)
    lognormal_p99: float = setting(20.0, "Its 99th percentile.", gt=0)
    per_minute: int = setting(600, "Requests a minute of the rate run.", ge=1)
    rate_minutes: float = setting(3.0, "Length of the rate run, in minutes.", gt=1)
    memory_requests: int = setting(50000, "Requests of the memory run.", ge=1000)
    work_dir: str | None = setting(None, "Folder for the runs' files; by default a temporary one.")


def main() -> None:
    """Run the scenarios and print one JSON object."""
    settings = parse_settings(Benchmark, description="Fan-out of generation against a stand-in teacher over HTTP.")
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {cores()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory(dir=settings.work_dir) as folder:
        for name in settings.scenarios:
            report[name] = _SCENARIOS[name](settings, Path(folder) / name)
            print(json.dumps({name: report[name]}), flush=True)
    print(json.dumps(report))


def latency(settings: Benchmark, folder: Path) -> dict[str, Any]:
    """A teacher that always takes as long: the ideal rate is slots over latency."""
    found = _run(settings, folder, settings.requests, {"latency": settings.latency})
    ideal = settings.in_flight / settings.latency
    rate = found["arrivals_after_ramp"] / found["seconds"]
    return {**found, "ideal_per_second": ideal, "per_second": round(rate, 2), "share_of_ideal": round(rate / ideal, 4)}


def lognormal(settings: Benchmark, folder: Path) -> dict[str, Any]:
    """A teacher with stragglers: the share of slots that were busy."""
    return _run(
        settings,
        folder,
        settings.lognormal_requests,
        {"latency_median": settings.lognormal_median, "latency_p99": settings.lognormal_p99},
    )


def rate(settings: Benchmark, folder: Path) -> dict[str, Any]:
    """A limit of requests a minute: how much of it was used, and whether a window ever exceeded it."""
    requests = int(settings.per_minute * settings.rate_minutes)
    found = _run(settings, folder, requests, {"latency": 0.5}, requests_per_minute=settings.per_minute)
    used = found["arrivals_after_ramp"] / found["seconds"] * 60 / settings.per_minute
    return {**found, "limit_per_minute": settings.per_minute, "share_of_limit": round(used, 4)}


def memory(settings: Benchmark, folder: Path) -> dict[str, Any]:
    """A long run: how much the driver's resident memory grew after its first tenth."""
    found = _run(settings, folder, settings.memory_requests, {"latency": 0.3})
    return {**found, "requests": settings.memory_requests}


_SCENARIOS = {"latency": latency, "lognormal": lognormal, "rate": rate, "memory": memory}


def _run(settings: Benchmark, folder: Path, requests: int, teacher: dict[str, Any], **flags: Any) -> dict[str, Any]:
    port = free_port()
    stand_in = ["-m", "alpaca_ray.testing.teacher", "--port", str(port), "--tasks", "1", "--remember", "false"]
    job = [
        *(
            str(_ROOT / "jobs" / "generate.py"),
            "--output_dir",
            str(folder),
            "--base_url",
            f"http://127.0.0.1:{port}/v1",
        ),
        *("--num_instructions_to_generate", "10000000", "--max_requests", str(requests)),
        *("--max_in_flight", str(settings.in_flight), "--similarity_stats", "none", "--request_batch_size", "5000"),
        *_flags(flags),
    ]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with running([sys.executable, *stand_in, *_flags(teacher)], cwd=_ROOT, **quiet) as server:
        assert server.stdout is not None
        server.stdout.readline()  # it listens
        with running([sys.executable, *job], cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
            watch = _Memory(driver.pid, folder / "journal.jsonl", int(_WARM * requests))
            _, errors = driver.communicate()
            growth = watch.stop()
        if driver.returncode:
            raise GenerationError(f"jobs/generate.py ended with {driver.returncode}: {errors.decode()[-500:]}")
        url = f"http://127.0.0.1:{port}/stats?at_least={settings.in_flight}&skip={_RAMP}"
        with urllib.request.urlopen(url) as reply:
            stats = json.load(reply)
    before = sum(1 for _ in (folder / "journal.jsonl").open("rb")) - 1
    kept = ("statuses", "most_at_once", "most_in_60_seconds", "seconds", "mean_in_flight", "slots_busy")
    return {
        **{name: stats.get(name) for name in kept},
        "answers": before,
        "arrivals_after_ramp": stats["arrivals_after_skip"],
        "driver_growth_mb": growth,
    }


def _flags(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


class _Memory:
    """Samples a process's resident memory, from the moment that a file has so many lines."""

    def __init__(self, pid: int, journal: Path, lines: int) -> None:
        self._process = psutil.Process(pid)
        self._journal = journal
        self._lines = lines
        self._samples: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        """Return how many megabytes it has grown since; None where that moment never came."""
        self._done.set()
        self._thread.join()
        return round((max(self._samples) - self._samples[0]) / _MEGABYTE, 1) if self._samples else None

    def _watch(self) -> None:
        seen = offset = 0
        while not self._done.wait(1.0):
            if seen < self._lines:
                if self._journal.is_file():
                    with self._journal.open("rb") as file:
                        file.seek(offset)
                        data = file.read()
                    seen, offset = seen + data.count(b"\n"), offset + len(data)
                continue
            try:
                self._samples.append(self._process.memory_info().rss)
            except psutil.NoSuchProcess:
                return


if __name__ == "__main__":
    run_main(main)
