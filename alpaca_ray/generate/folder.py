"""The output folder: what it holds already, whether a run may go on in it, and how its files are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.generate import journal
from alpaca_ray.generate.journal import Header, Outcome
from alpaca_ray.generate.process import Record
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import read_manifest
from alpaca_ray.records import write_json, write_jsonl
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.storage import check_output, used_by, write_atomic

STAGE = "generate"
RECORDS = "regen.json"
REJECTED = "rejected.jsonl"
METRICS = "metrics.json"
OURS = (journal.FILE_NAME, RECORDS, REJECTED, METRICS, MANIFEST)


@dataclass(frozen=True)
class FolderState:
    """What a run finds.

    Attributes:
        records: all of ``regen.json``.
        initial: those of them that no answer in the journal made; they stay in front, unchanged.
        header: the journal's; None where there is none yet.
        outcomes: the journal's, in the order they came.
        files: what the folder looked like before it was read (see ``fingerprint``).
    """

    records: list[Record] = field(default_factory=list)
    initial: list[Record] = field(default_factory=list)
    header: Header | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    files: frozenset[tuple[str, int, int]] = frozenset()


def inspect(folder: Path, *, resume: bool, overwrite: bool) -> FolderState:
    """Look at an output folder without touching it.

    A folder with ``regen.json`` and nothing else of ours is taken up as the original does, with or without ``resume``.

    Raises:
        OutputError: it is used and neither flag is given, it cannot be resumed, or it is another stage's.
        DataError: ``regen.json``, the journal or ``run.json`` is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("stage") != STAGE:
        raise OutputError(
            f"--output_dir {folder}: its {MANIFEST} is of another stage ({manifest.get('stage') or 'unnamed'}), and "
            "would be lost: give another folder"
        )
    files = fingerprint(folder)
    used = {path.name for path in used_by(folder, OURS)}
    take_up = used == {RECORDS} and not overwrite
    check_output(folder, OURS, resume=resume or take_up, overwrite=overwrite)
    if overwrite or not used:
        return FolderState(files=files)
    header = journal.read_header(folder / journal.FILE_NAME)
    if header is None and used - {RECORDS, journal.FILE_NAME}:
        raise OutputError(
            f"--resume: {folder} holds {sorted(used)[0]} but no {journal.FILE_NAME}: nothing to go on from; give "
            "--overwrite to start anew, or another folder"
        )
    records = read_regen(folder / RECORDS) if RECORDS in used else []
    if header is None:
        return FolderState(records, records, files=files)
    if len(records) < header.initial:
        raise OutputError(
            f"--resume: {folder / RECORDS} held {header.initial} records before this run began, and now has "
            f"{len(records)}: put it back, or give --overwrite to start anew"
        )
    outcomes = list(journal.read_outcomes(folder / journal.FILE_NAME))
    return FolderState(records, records[: header.initial], header, outcomes, files)


def fingerprint(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Return name, size and time of change (ns) of each file of ours: another run that writes changes them."""
    found = ((path.name, path.stat()) for path in used_by(folder, OURS))
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def read_regen(path: Path) -> list[Record]:
    """Return the records of a ``regen.json``, with every key as it is.

    Raises:
        DataError: not a JSON list of records with an ``instruction``; names the line or the record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error})") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: must hold a JSON list of records, not one {type(content).__name__}")
    for index, record in enumerate(content):
        if not isinstance(record, dict) or not isinstance(record.get("instruction"), str):
            raise DataError(f"{path}: record {index}: has no 'instruction' (a text)")
    return content


def answer_settings(
    settings: GenerateSettings, teacher: Teacher, header: str, seeds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return all that the answers and their processing depend on, as the journal's header keeps it."""
    tasks = [[task["instruction"], task.get("input") or "", task["output"]] for task in seeds]
    return {
        "model_name": teacher.model,
        "base_url": teacher.identity,
        "api": teacher.api,
        **{
            name: getattr(settings, name)
            for name in (
                "temperature",
                "top_p",
                "max_tokens",
                "num_prompt_instructions",
                "num_tasks_per_prompt",
                "max_example_words",
                "seed",
                "similarity_threshold",
            )
        },
        "stop": settings.stops(),
        "prompt_header": _digest(header),
        "seed_tasks_path": _digest(json.dumps(tasks, ensure_ascii=False)),
    }


def check_same(header: Header, now: Mapping[str, Any], folder: Path) -> None:
    """Check that a resumed run would ask and decide as the journal's run did.

    Raises:
        OutputError: settings differ; each is named with both values.
    """
    names = [name for name in [*now, *(set(header.settings) - set(now))] if header.settings.get(name) != now.get(name)]
    if names:
        differing = ", ".join(
            f"--{name} (there {header.settings.get(name)!r}, now {now.get(name)!r})" for name in sorted(names)
        )
        raise OutputError(
            f"--resume: the journal in {folder} was made with other settings: {differing}; use the same, or "
            "--overwrite to start anew, or another folder"
        )


def write_results(
    folder: Path, records: Sequence[Record], rejected: Iterable[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> None:
    """Replace ``regen.json``, ``rejected.jsonl`` and ``metrics.json``, each in one step."""
    write_atomic(folder / RECORDS, write_json(records))
    write_atomic(folder / REJECTED, write_jsonl(dict(row) for row in rejected))
    write_atomic(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


def earlier_seconds(folder: Path) -> float:
    """Return the seconds that earlier sessions of a run took, as its ``metrics.json`` has them; 0 without one."""
    try:
        return float(json.loads((folder / METRICS).read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # killed before its first checkpoint


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
