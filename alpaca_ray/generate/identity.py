"""What makes a run the same: the settings that its answers depend on, and those that decide what is made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.journal import Header
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.settings.generate import ASKING, DECIDING, GenerateSettings

_TEACHER = ("model_name", "base_url", "api")


def asking(
    settings: GenerateSettings, teachers: Sequence[Teacher], header: str, seeds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return all that the answers depend on: another value is another run."""
    apis = sorted({teacher.api for teacher in teachers})
    tasks = [[task["instruction"], task.get("input") or "", task["output"]] for task in seeds]
    return {
        "model_name": ", ".join(sorted({teacher.model for teacher in teachers})),
        "base_url": ", ".join(sorted({teacher.identity for teacher in teachers})),
        "api": ", ".join(apis),
        **{name: getattr(settings, name) for name in ASKING},
        "stop": settings.stops(),
        "logit_bias": next(filter(None, (settings.compat_parameters(api).get("logit_bias") for api in apis)), None),
        "prompt_header": _digest(header),
        "seed_tasks_path": _digest(json.dumps(tasks, ensure_ascii=False)),
    }


def deciding(settings: GenerateSettings, evaluation: Sequence[str]) -> dict[str, Any]:
    """Return what decides which entries of the answers are kept: ``--replay`` applies other values.

    Args:
        evaluation: prompts of the evaluation sets that records are kept away from.
    """
    known = _digest(json.dumps(list(evaluation), ensure_ascii=False)) if evaluation else None
    values = {name: getattr(settings, name) for name in DECIDING}
    if not evaluation:
        values["decontaminate_threshold"] = None  # decides nothing then
    return {**values, "decontaminate": known}


def check_same(header: Header, now: Mapping[str, Any], folder: Path) -> None:
    """Check that a resumed run would ask and decide as the journal's run did.

    Raises:
        OutputError: settings differ; each is named with both values.
    """
    names = _differing(header.settings, now)
    if not names:
        return
    advice = "use the same, or --overwrite to start anew, or another folder"
    if all(name in DECIDING or name == "decontaminate" for name in names):
        advice = "use the same, or --replay, which goes through the journal again with those given now"
    differing = _shown(header.settings, now, names)
    raise OutputError(f"--resume: the journal in {folder} was made with other settings: {differing}; {advice}")


def check_replayable(header: Header, settings: GenerateSettings, now: Mapping[str, Any], folder: Path) -> None:
    """Check that a replay is asked for with nothing that only another run could have.

    What is not given is the journal's; the seed tasks must be the same, since instructions are compared with them.

    Raises:
        OutputError: settings differ; each is named with both values.
    """
    given = {name: value for name, value in now.items() if name == "seed_tasks_path" or settings.was_given(name)}
    names = [name for name in given if name not in _TEACHER and given[name] != header.settings.get(name)]
    models = str(header.settings.get("model_name")).split(", ")
    if settings.model_name and settings.model_name not in models:
        raise OutputError(
            f"--replay asks nobody: the answers in {folder} are {', '.join(models)}'s, not {settings.model_name}'s: "
            "leave --model_name out"
        )
    if names:
        raise OutputError(
            f"--replay: the answers in {folder} were asked for with other settings: "
            f"{_shown(header.settings, now, names)}; use the same, or another folder for another run"
        )


def _differing(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # As they are read back: a journal knows lists where settings may have tuples.
    plain = json.loads(json.dumps(dict(now)))
    return sorted(name for name in {*plain, *there} if there.get(name) != plain.get(name))


def _shown(there: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"--{name} (there {there.get(name)!r}, now {now.get(name)!r})" for name in sorted(names))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
