"""What a report is made from: the records, and what stands beside them in a stage's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from alpaca_ray.errors import DataError
from alpaca_ray.manifest import FILE_NAME, read_manifest
from alpaca_ray.records import Record, read_records, source_path
from alpaca_ray.report.metrics import Metrics, read_metrics
from alpaca_ray.rows import locate
from alpaca_ray.storage import is_uri

_THRESHOLDS = ("settings.similarity_threshold", "settings.threshold", "teacher.similarity_threshold")
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Source:
    """Records and their account.

    ``rejected`` counts by reason;
    ``rejected_scores`` holds the ROUGE-L of each record that was dropped as too similar.
    """

    name: str
    records: list[Record]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    metrics: Metrics | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)
    rejected_scores: list[float] = field(default_factory=list)

    @property
    def short_name(self) -> str:
        """The name without folders: a path says more about a machine than about the data."""
        local = not is_uri(self.name) and Path(self.name).expanduser().exists()
        return Path(self.name).expanduser().resolve().name if local else self.name

    @property
    def stage(self) -> str | None:
        """``generate``, ``dedup``, or None where no ``run.json`` says."""
        return self.manifest.get("stage")

    @property
    def unfinished(self) -> bool:
        """Whether a run is still at work in the folder, or was stopped: it has metrics, but no ``run.json``."""
        return self.metrics is not None and not self.manifest

    @property
    def threshold(self) -> float | None:
        """The ROUGE-L from which on the run called an instruction too similar."""
        found = self.first(*_THRESHOLDS)
        return None if found is None else float(found)

    def first(self, *paths: str) -> Any:
        """Return the first value that ``run.json`` holds at one of the dotted ``paths``, or None."""
        for path in paths:
            value: Any = self.manifest
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None


def source_file(name: str) -> Path | None:
    """Return the local file that holds the records of a source, or None where it is none.

    Raises:
        DataError: there is no such source.
    """
    where, on_hub = locate(source_path(name))
    if where.startswith("file://"):
        return Path(unquote(urlsplit(where).path))
    return None if on_hub or is_uri(where) else Path(where)


def read_source(name: str) -> Source:
    """Read a stage's folder, a file of records, a hub id or ``seeds``.

    Raises:
        DataError: there are no records, or a file beside them is malformed; the text names it.
    """
    path = Path(source_path(name)).expanduser()
    if is_uri(name) or not path.is_dir():
        return Source(name, read_records(name, need_output=False))
    records = read_records(str(path), need_output=False)
    metrics = read_metrics(path)
    counted, scores = _read_rejected(path / REJECTED)
    said = metrics.rejected if metrics else None
    source = Source(
        name,
        records,
        read_manifest(path) or {},
        metrics,
        dict(counted) if said is None else said,
        scores,
    )
    _check_manifest(source, path / FILE_NAME)
    return source


def _check_manifest(source: Source, path: Path) -> None:
    """Check what the report computes with; all else of ``run.json`` is only shown."""
    inputs = source.first("inputs")
    if inputs is not None and not (isinstance(inputs, list) and all(isinstance(entry, dict) for entry in inputs)):
        raise DataError(f"{path}: 'inputs' must be a list of objects, not {inputs!r:.40}")
    for name in _THRESHOLDS:
        value = source.first(name)
        if value is not None and not _is_score(value):
            raise DataError(f"{path}: {name!r} must be a number from 0 to 1, not {value!r:.40}")


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _read_rejected(path: Path) -> tuple[Counter[str], list[float]]:
    """Count the rows by reason, line by line: there may be far more of them than records."""
    reasons: Counter[str] = Counter()
    scores: list[float] = []
    if not path.is_file():
        return reasons, scores
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                reasons[str(row["reason"])] += 1
                score = row.get("score") if row["reason"] == "too_similar" else None
                if score is not None:
                    if not _is_score(score):
                        raise ValueError("its 'score' must be a number from 0 to 1")
                    scores.append(float(score))
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                if not line.endswith("\n"):  # a run at work, or one that was killed, may leave half a line
                    break
                raise DataError(f"{path}, line {number}: no rejected record ({_reason(error)})") from error
    return reasons, scores


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
