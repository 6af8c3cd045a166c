"""What a report is made from: the records, and what stands beside them in a stage's folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError
from alpaca_ray.manifest import read_json_object, read_manifest
from alpaca_ray.records import Record, read_records, source_path
from alpaca_ray.storage import is_uri

METRICS = "metrics.json"
REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Source:
    """Records and their account.

    ``folder`` is None where the records came from a single file or a hub id. ``rejected`` counts by reason;
    ``rejected_scores`` holds the ROUGE-L of each record that was dropped as too similar.
    """

    name: str
    records: list[Record]
    folder: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
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
        return bool(self.metrics) and not self.manifest

    def first(self, *paths: str) -> Any:
        """Return the first value that ``run.json`` holds at one of the dotted ``paths``, or None."""
        for path in paths:
            value: Any = self.manifest
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None


def read_source(name: str) -> Source:
    """Read a stage's folder, a file of records, a hub id or ``seeds``.

    Raises:
        DataError: there are no records, or a file beside them is malformed; the text names it.
    """
    path = Path(source_path(name)).expanduser()
    if is_uri(name) or not path.is_dir():
        return Source(name, read_records(name, need_output=False))
    records = read_records(str(path), need_output=False)
    metrics = read_json_object(path / METRICS) or {}
    counted, scores = _read_rejected(path / REJECTED)
    said = metrics.get("rejected")
    rejected = {str(k): int(v) for k, v in said.items()} if isinstance(said, Mapping) else dict(counted)
    return Source(name, records, path, read_manifest(path) or {}, metrics, rejected, scores)


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
                if row["reason"] == "too_similar" and row.get("score") is not None:
                    scores.append(float(row["score"]))
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                if not line.endswith("\n"):  # a run at work, or one that was killed, may leave half a line
                    break
                raise DataError(f"{path}, line {number}: no rejected record ({error})") from error
    return reasons, scores
