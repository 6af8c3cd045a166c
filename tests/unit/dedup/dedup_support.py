"""Files of records with near-duplicates, runs over them, and what rouge-score says that they must keep."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rouge_score import rouge_scorer
from rouge_score import tokenize as rouge_tokenize

from alpaca_ray.dedup.pipeline import dedup
from alpaca_ray.settings.dedup import DedupSettings

WORDS = (
    *("write", "a", "poem", "about", "the", "sea", "and", "list", "five", "names", "of", "rivers", "in", "Peru"),
    *("explain", "why", "it", "is", "so"),
)
FILES = {"kept.jsonl", "rejected.jsonl", "metrics.json", "run.json"}


def some_records(seed: int, count: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        words = rng.choices(WORDS, k=rng.randint(3, 14))
        if found and rng.random() < 0.4:
            words = rng.choice(found)["instruction"].split()
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        found.append({"instruction": " ".join(words), "input": "", "output": f"o{number}", "mine": {"n": number}})
    return found


def save(path: Path, records: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run(folder: Path, *sources: str, **given: Any) -> Path:
    return dedup(DedupSettings.resolve({"data_path": list(sources), "output_dir": str(folder), "num_cpus": 1, **given}))


def expected(records: list[dict[str, Any]], seeds: list[str]) -> list[tuple[bool, float, str | None]]:
    """Whether each is kept, its highest score with what was kept before, and the first text that has it."""
    kept = [(text, rouge_tokenize.tokenize(text, None)) for text in seeds]
    result = []
    for record in records:
        tokens = rouge_tokenize.tokenize(record["instruction"], None)
        scores = [(rouge_scorer._score_lcs(tokens, other).fmeasure, text) for text, other in kept]
        best = max(scores, key=lambda pair: pair[0], default=(0.0, None))
        result.append((not best[0] > 0.7, *best))
        if result[-1][0]:
            kept.append((record["instruction"], tokens))
    return result
