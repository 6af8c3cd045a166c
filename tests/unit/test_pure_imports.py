"""Pure logic imports neither ray, torch nor transformers: `--help` and bad input answer at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import alpaca_ray

PACKAGE = Path(alpaca_ray.__file__).parent
# The wiring modules, and the one place where models run. Everything else must stay pure.
WIRING = {
    "cluster",
    "dedup.actors",
    "generate.fanout",
    "generate.pipeline",
    "generate.rounds",
    "generate.session",
    "serve.app",
    "serve.ingress",
    "serve.local",
    "serve.model_server",
    "train.agree",
    "train.attention",
    "train.attention_short",
    "train.bare",
    "train.board",
    "train.builder",
    "train.callbacks",
    "train.checkpoints",
    "train.dry_run",
    "train.held",
    "train.launch",
    "train.loop",
    "train.lora",
    "train.loss",
    "train.memory",
    "train.noise",
    "train.preemption",
    "train.proof",
    "train.proof_forward",
    "train.proof_loss",
    "train.proof_saved",
    "train.proof_weights",
    "train.reading",
    "train.reporting",
    "train.runner",
    "train.seen",
    "train.sentinel",
    "train.sharded",
    "train.simulate",
    "train.snapshot",
    "train.survival",
    "train.trainer",
    "train.wrapping",
}
WIRING_PACKAGES = ("serve.engine.",)


def pure_modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name not in WIRING and not name.startswith(WIRING_PACKAGES) and name != "__init__":
            names.append(f"alpaca_ray.{name}")
    return names


def test_pure_modules_import_without_the_heavy_libraries() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {pure_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'ray', 'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} imports {sorted(heavy)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_list_is_not_empty() -> None:
    assert {"alpaca_ray.records", "alpaca_ray.settings.base", "alpaca_ray.prompts"} <= set(pure_modules())


def test_jobs_are_thin() -> None:
    for path in (PACKAGE.parent / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, f"{path.name}: a job parses settings and calls one function"
