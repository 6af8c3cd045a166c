"""Deduplication of files: records go through in batches, in order, and are written as they are decided.

What stays in memory: the texts and tokens of seeds and kept instructions, every distinct word that was seen, and a
number for each record that came without an ``id``. The records themselves do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.dedup.account import Account
from alpaca_ray.dedup.folder import KEPT, METRICS, REJECTED, STAGE
from alpaca_ray.dedup.inputs import Inputs
from alpaca_ray.dedup.output import Results
from alpaca_ray.dedup.stream import Item, instruction_of, read_items
from alpaca_ray.manifest import write_manifest
from alpaca_ray.novelty.decontaminate import Contamination, Decontaminator
from alpaca_ray.novelty.filter import Decision, NoveltyFilter
from alpaca_ray.novelty.rejected import Reason, rejected_row
from alpaca_ray.novelty.shards import ShardMaker
from alpaca_ray.settings.dedup import DedupSettings
from alpaca_ray.storage import location

_BATCH = 1024


def run(
    settings: DedupSettings, inputs: Inputs, folder: Path, *, make_shard: ShardMaker | None = None
) -> dict[str, Any]:
    """Deduplicate, write the results, and return the metrics.

    Raises:
        DataError: a record cannot be read; the folder is as it was.
        OutputError: the folder cannot be written; its results are as they were.
    """
    with Results(folder, inputs.identity, overwrite=settings.overwrite, resume=settings.resume) as results:
        if results.complete:
            metrics = results.metrics()
            results.put_in_place()
        else:
            metrics = _decide_all(settings, inputs, results, make_shard)

            def describe(place: Path) -> None:
                write_manifest(
                    place,
                    STAGE,
                    settings=settings.to_dict(),
                    inputs=[source for _, source in inputs.all],
                    data_file=KEPT,
                    outputs=[KEPT, REJECTED, METRICS],
                )

            results.publish(metrics, describe)
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in metrics["rejected"].items()) or "none"
    say(f"kept {metrics['kept']:,} of {metrics['records']:,} records; rejected: {rejected}")
    say(f"result: {location(folder / KEPT)}")
    return metrics


def _decide_all(
    settings: DedupSettings, inputs: Inputs, results: Results, make_shard: ShardMaker | None
) -> dict[str, Any]:
    """Decide all records that are not decided yet, and return the metrics."""
    account = Account(results.progress)
    before = results.progress.records
    known = [instruction_of(row, f"{KEPT}: record {number}") for number, row in enumerate(results.kept_rows())]
    if before:
        say(f"going on after {before:,} records, of which {len(known):,} were kept")
    novelty = NoveltyFilter(
        [*inputs.seeds, *known],
        threshold=settings.threshold,
        workers=settings.num_cpus or -1,
        stats=settings.similarity_stats,
        tokenizer=settings.tokenizer,
        make_shard=make_shard,
        num_shards=settings.num_shards,
    )
    try:
        # What is decided is read again all the same: it is counted where records get an id from their content.
        items = itertools.islice(read_items(inputs.sources), before, None)
        while batch := list(itertools.islice(items, _BATCH)):
            for item, reason, nearest, decision in _judged(batch, inputs.decontaminator, novelty):
                where = f"{item.source}: record {item.entry}"
                if reason is None:
                    results.keep(_described(item, decision), where)
                else:
                    results.reject(_rejected(item, reason, nearest), where)
                account.add(reason)
            account.tell()
            results.note(account.records, account.kept, account.rejected, account.seconds)
        if novelty.warning:
            say(novelty.warning)
    finally:
        novelty.close()
    return account.metrics()


Judged = tuple[Item, Reason | None, tuple[str, float] | None, Decision | None]


def _judged(batch: list[Item], decontaminator: Decontaminator | None, novelty: NoveltyFilter) -> Iterator[Judged]:
    """Yield each record with the reason to drop it (None: kept), what it is near to, and the decision on it if any."""
    near: list[Contamination | None] = [None] * len(batch)
    if decontaminator is not None:
        near = decontaminator.find_records([(item.instruction, item.input) for item in batch])
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
    answer = item.record.get("output")
    return rejected_row(
        reason,
        entry=item.entry,
        instruction=item.instruction,
        input=item.input,
        output=answer if isinstance(answer, str) else "",
        most_similar=nearest[0] if nearest else None,
        score=nearest[1] if nearest else None,
        id=item.record.get("id"),
        source=item.source,
    )
