"""Deduplication of files: records go through in batches, in order, and only their instructions stay in memory."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.dedup.output import KEPT, METRICS, REJECTED, STAGE, Results
from alpaca_ray.dedup.stream import Item, instruction_of, read_items
from alpaca_ray.errors import DataError
from alpaca_ray.manifest import write_manifest
from alpaca_ray.novelty.decontaminate import Contamination, Decontaminator, evaluation_prompts
from alpaca_ray.novelty.filter import Decision, NoveltyFilter
from alpaca_ray.novelty.rejected import REASONS, Reason, rejected_row
from alpaca_ray.novelty.shards import ShardMaker
from alpaca_ray.records import source_path
from alpaca_ray.rows import locate, read_rows
from alpaca_ray.settings.dedup import DedupSettings
from alpaca_ray.storage import location

_BATCH = 1024
_SECONDS_BETWEEN_LINES = 5.0


class Inputs:
    """What a run compares with, read before anything is written."""

    def __init__(self, settings: DedupSettings) -> None:
        """Read seeds and evaluation prompts, and check that every source of records is there.

        Raises:
            DataError: one is missing or malformed.
        """
        for source in settings.data_path:
            locate(source_path(source))
        self.sources = [source_path(source) for source in settings.data_path]
        self.seeds: list[str] = []
        if settings.seed_tasks_path:
            name = source_path(settings.seed_tasks_path)
            self.seeds = [instruction_of(row, f"{name}: record {number}") for number, row in enumerate(read_rows(name))]
            if not self.seeds:
                raise DataError(f"{name}: holds no records")
        prompts = [prompt for source in settings.decontaminate or [] for prompt in evaluation_prompts(source)]
        self.decontaminator = (
            Decontaminator(
                prompts,
                threshold=settings.threshold,
                workers=settings.num_cpus or -1,
                tokenizer_name=settings.tokenizer,
            )
            if prompts
            else None
        )


def run(
    settings: DedupSettings, inputs: Inputs, folder: Path, *, make_shard: ShardMaker | None = None
) -> dict[str, Any]:
    """Deduplicate, write the results, and return the metrics.

    Raises:
        DataError: a record cannot be read; the folder is as it was.
        OutputError: the folder cannot be written.
    """
    started = time.monotonic()
    novelty = NoveltyFilter(
        inputs.seeds,
        threshold=settings.threshold,
        workers=settings.num_cpus or -1,
        stats=settings.similarity_stats,
        tokenizer=settings.tokenizer,
        make_shard=make_shard,
        num_shards=settings.num_shards,
    )
    try:
        with Results(folder) as results:
            account = _Account(started)
            items = read_items(inputs.sources)
            while batch := list(itertools.islice(items, _BATCH)):
                for item, reason, nearest, decision in _judged(batch, inputs.decontaminator, novelty):
                    where = f"{item.source}: record {item.entry}"
                    if reason is None:
                        results.keep(_described(item, decision), where)
                    else:
                        results.reject(_rejected(item, reason, nearest), where)
                    account.add(reason)
                account.tell()
            metrics = account.metrics()
            results.publish(metrics)
            write_manifest(
                folder,
                STAGE,
                settings=settings.to_dict(),
                inputs=[
                    *inputs.sources,
                    *([source_path(settings.seed_tasks_path)] if settings.seed_tasks_path else []),
                    *(settings.decontaminate or []),
                ],
                data_file=KEPT,
                outputs=[KEPT, REJECTED, METRICS],
            )
    finally:
        novelty.close()
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in metrics["rejected"].items()) or "none"
    say(f"kept {metrics['kept']:,} of {metrics['records']:,} records; rejected: {rejected}")
    say(f"result: {location(folder / KEPT)}")
    return metrics


Judged = tuple[Item, Reason | None, tuple[str, float] | None, Decision | None]


def _judged(batch: list[Item], decontaminator: Decontaminator | None, novelty: NoveltyFilter) -> Iterator[Judged]:
    """Yield each record with the reason to drop it (None: kept), what it is near to, and the decision on it if any."""
    near: list[Contamination | None] = [None] * len(batch)
    if decontaminator is not None:
        near = decontaminator.find([item.instruction for item in batch])
        with_input = [
            number for number, item in enumerate(batch) if near[number] is None and item.prompt != item.instruction
        ]
        for number, found in zip(with_input, decontaminator.find([batch[n].prompt for n in with_input]), strict=True):
            near[number] = found
    decisions = iter(novelty.decide(item.instruction for item, found in zip(batch, near, strict=True) if found is None))
    for item, found in zip(batch, near, strict=True):
        if found is not None:
            yield item, "contaminated", (found.prompt, found.score), None
            continue
        decision = next(decisions)
        nearest = next(iter(decision.most_similar.items()), None)
        yield item, None if decision.keep else "too_similar", nearest, decision


def _described(item: Item, decision: Decision | None) -> dict[str, Any]:
    """Return a kept record with what the statistics say, in the original's fields."""
    record = dict(item.record)
    if decision is not None and decision.most_similar:
        record["most_similar_instructions"] = decision.most_similar
    if decision is not None and decision.average is not None:
        record["avg_similarity_score"] = decision.average
    return record


def _rejected(item: Item, reason: Reason, nearest: tuple[str, float] | None) -> dict[str, Any]:
    given, answer = item.record.get("input"), item.record.get("output")
    return rejected_row(
        reason,
        entry=item.entry,
        instruction=item.instruction,
        input=given if isinstance(given, str) else "",
        output=answer if isinstance(answer, str) else "",
        most_similar=nearest[0] if nearest else None,
        score=nearest[1] if nearest else None,
        id=item.record.get("id"),
        source=item.source,
    )


class _Account:
    """Counts, and says how far the run is."""

    def __init__(self, started: float) -> None:
        self._started = self._said = started
        self._kept = 0
        self._reasons: Counter[str] = Counter()

    def add(self, reason: Reason | None) -> None:
        if reason is None:
            self._kept += 1
        else:
            self._reasons[reason] += 1

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            total = self._kept + sum(self._reasons.values())
            say(f"{total:,} records read, {self._kept:,} kept, {total / (now - self._started):,.0f} a second")

    def metrics(self) -> dict[str, Any]:
        seconds = time.monotonic() - self._started
        total = self._kept + sum(self._reasons.values())
        return {
            "records": total,
            "kept": self._kept,
            "rejected": {reason: self._reasons[reason] for reason in REASONS if self._reasons[reason]},
            "seconds": round(seconds, 3),
            "records_per_second": round(total / seconds, 1) if seconds else None,
        }
