"""One run of the real demo, smaller, whose folders the end-to-end tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_support import ROOT, DemoRun


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in Path(item.path).parts:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The demo with fewer new instructions, as a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "jobs/demo.py", "--output_dir", str(folder), "--num_instructions_to_generate", "4"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    return DemoRun(folder, done.returncode, done.stdout + done.stderr)
