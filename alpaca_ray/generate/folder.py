"""The output folder: what it holds already, whether a run may go on in it, and how its files are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.generate import journal, sent
from alpaca_ray.generate.budget import Price, Tokens
from alpaca_ray.generate.journal import Header, Outcomes
from alpaca_ray.generate.process import Record
from alpaca_ray.generate.store import RowStore
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import read_manifest
from alpaca_ray.records import json_pieces
from alpaca_ray.rows import read_rows
from alpaca_ray.storage import check_output, used_by, write_atomic

STAGE = "generate"
RECORDS = "regen.json"
REJECTED = "rejected.jsonl"
METRICS = "metrics.json"
WHOLE = (RECORDS, REJECTED, METRICS, MANIFEST)  # replaced as one; the others grow
OURS = (journal.FILE_NAME, sent.FILE_NAME, *WHOLE)


@dataclass(frozen=True)
class FolderState:
    """What a run finds.

    Attributes:
        total: records in ``regen.json``.
        initial: those of them that no answer in the journal made; they stay in front, unchanged.
        header: the journal's; None where there is none yet.
        outcomes: the journal's, in the order they came.
        lost: tokens, at most, of attempts of earlier sessions that no outcome tells of.
        files: what the folder looked like before it was read (see ``fingerprint``).
    """

    total: int = 0
    initial: Sequence[Record] = ()
    header: Header | None = None
    outcomes: Outcomes = field(default_factory=Outcomes)
    lost: Tokens = field(default_factory=Tokens)
    files: frozenset[tuple[str, int, int]] = frozenset()


def inspect(folder: Path, *, resume: bool, overwrite: bool, replay: bool = False) -> FolderState:
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
    if replay and journal.FILE_NAME not in used:
        raise OutputError(f"--replay: {folder} holds no {journal.FILE_NAME}: there is nothing to go through")
    take_up = used == {RECORDS} and not overwrite
    check_output(folder, OURS, resume=resume or replay or take_up, overwrite=overwrite)
    if overwrite or not used:
        return FolderState(files=files)
    for name in (journal.FILE_NAME, sent.FILE_NAME):
        if (folder / name).is_dir():
            raise OutputError(
                f"{folder / name}: is a folder of parts, as a run in a bucket has it: put them together in the "
                "order of their names into one file of that name to go on from it"
            )
    contents = journal.read_journal(folder / journal.FILE_NAME)
    header = contents.header
    if header is None and replay:
        raise OutputError(
            f"--replay: {folder / journal.FILE_NAME} has no complete first line: there is nothing to go through"
        )
    if header is None and used - {RECORDS, journal.FILE_NAME, sent.FILE_NAME}:
        raise OutputError(
            f"--resume: {folder} holds {sorted(used)[0]} but no {journal.FILE_NAME}: nothing to go on from; give "
            "--overwrite to start anew, or another folder"
        )
    initial, total = RowStore(folder), 0
    for record in read_regen(folder / RECORDS) if RECORDS in used else ():
        total += 1
        if header is None or len(initial) < header.initial:
            initial.append(record)
    if header is None:
        return FolderState(total, initial, lost=sent.read_lost(folder / sent.FILE_NAME, ()), files=files)
    if total < header.initial:
        raise OutputError(
            f"--resume: {folder / RECORDS} held {header.initial} records before this run began, and now has "
            f"{total}: put it back, or give --overwrite to start anew"
        )
    lost = sent.read_lost(folder / sent.FILE_NAME, contents.outcomes.ids)
    return FolderState(total, initial, header, contents.outcomes, lost, files)


def fingerprint(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Return name, size and time of change (ns) of each file of ours: another run that writes changes them."""
    found = ((path.name, path.stat()) for path in used_by(folder, OURS))
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def read_regen(path: Path) -> Iterator[Record]:
    """Yield the records of a ``regen.json``, with every key as it is.

    Raises:
        DataError: not a JSON list of records with an ``instruction``; names the line or the record.
    """
    for index, record in enumerate(read_rows(str(path))):
        if not isinstance(record, dict) or not isinstance(record.get("instruction"), str):
            raise DataError(f"{path}: record {index}: has no 'instruction' (a text)")
        yield record


def write_results(folder: Path, records: RowStore, rejected: RowStore, metrics: Mapping[str, Any]) -> None:
    """Replace ``regen.json``, ``rejected.jsonl`` and ``metrics.json``, each in one step.

    Raises:
        OutputError: the disk is full or fails; the files are the old ones.
    """
    try:
        write_atomic(folder / RECORDS, json_pieces(records))
        write_atomic(folder / REJECTED, rejected.lines())
        write_atomic(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}; go on with --resume") from error


def earlier_price(folder: Path) -> Price | None:
    """Return what tokens cost in an earlier session, as its ``metrics.json`` says; None where it does not."""
    try:
        cost = json.loads((folder / METRICS).read_text(encoding="utf-8"))["cost"]
        return Price(*map(float, cost["price_per_million"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it knew no price, or wrote nothing


def earlier_metric(folder: Path, name: str) -> float | None:
    """Return a number that an earlier session of a run left in its ``metrics.json``; None without one."""
    try:
        return float(json.loads((folder / METRICS).read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # killed before its first checkpoint
