"""Every job answers ``--help`` completely, and a wrong flag with one line, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alpaca_ray.settings.base import Settings, field_names, metadata
from alpaca_ray.settings.dedup import DedupSettings
from alpaca_ray.settings.demo import DemoSettings
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.settings.report import ReportSettings
from alpaca_ray.settings.serve import ServeSettings
from alpaca_ray.settings.train import TrainSettings
from jobs.export import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
JOBS = [
    ("dedup.py", DedupSettings),
    ("demo.py", DemoSettings),
    *[(f"export.py {command}", settings) for command, (settings, _) in COMMANDS.items()],
    ("generate.py", GenerateSettings),
    ("report.py", ReportSettings),
    ("serve.py", ServeSettings),
    ("train.py", TrainSettings),
]


def run(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a job, or one command of it: ``job`` is its file, with the command's words behind it."""
    file, *words = job.split()
    command = [sys.executable, str(ROOT / "jobs" / file), *words, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_no_job_is_left_out() -> None:
    assert sorted(path.name for path in (ROOT / "jobs").glob("*.py")) == sorted({job.split()[0] for job, _ in JOBS})


@pytest.mark.parametrize(("job", "settings"), JOBS)
def test_help_names_every_flag(job: str, settings: type[Settings]) -> None:
    done = run(job, "--help")
    assert done.returncode == 0
    for name, canonical in field_names(settings).items():
        if name != settings.passthrough_field:
            flag = name.upper() if metadata(settings.model_fields[canonical])["positional"] else f"--{name}"
            assert f"{flag} " in done.stdout or f"{flag}\n" in done.stdout, name
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(("job", "settings"), JOBS)
def test_a_wrong_flag_is_one_line_and_exit_code_2(job: str, settings: type[Settings]) -> None:
    done = run(job, "--no_such_flag_at_all", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown flag --no_such_flag_at_all")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_job_with_commands_lists_them_and_wants_one() -> None:
    done = run("export.py", "--help")
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    for wrong in (["no_such_command"], [], ["--output_dir", "x"]):
        done = run("export.py", *wrong)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert all(command in done.stderr for command in COMMANDS)
