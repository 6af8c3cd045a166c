"""How fast instructions are compared: with full statistics against rouge-score, decisions alone up to a million.

Records are spliced from real instructions with a seed: the beginning of one and the end of another, about 16 tokens,
and every fifth a near-duplicate of an earlier one. rouge-score would take core-days for all pairs: its functions are
timed on a seeded sample of the same pairs, in the same run. The kept set of the decisions alone is compared with that
of full statistics, which score every pair exactly (and equal rouge-score's in the tests). Prints one JSON object as
its last line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rouge_score import rouge_scorer
from rouge_score import tokenize as rouge_tokenize

from alpaca_ray.dedup.stream import instruction_of
from alpaca_ray.novelty.filter import NoveltyFilter
from alpaca_ray.novelty.tokens import tokenize
from alpaca_ray.records import source_path
from alpaca_ray.rows import read_rows

_TOGETHER = 20  # instructions that a run decides at once at 1,000 answers a second
_BATCH = 8192


def splice(sources: Sequence[str], count: int, seed: int) -> list[str]:
    """Return ``count`` instructions made of pieces of ``sources``, near-duplicates among them."""
    rng = random.Random(seed)
    words = [text.split() for text in sources if text.split()]
    made: list[str] = []
    for _ in range(count):
        if made and rng.random() < 0.2:
            parts = made[rng.randrange(len(made))].split()
            for _ in range(rng.randint(1, 3)):
                donor = words[rng.randrange(len(words))]
                parts[rng.randrange(len(parts))] = donor[rng.randrange(len(donor))]
        else:
            length = min(60, max(4, round(rng.lognormvariate(math.log(15), 0.4))))
            first, second = (words[rng.randrange(len(words))] for _ in range(2))
            half = length // 2
            begin = rng.randrange(max(1, len(first) - half + 1))
            end = rng.randrange(max(1, len(second) - (length - half) + 1))
            parts = first[begin : begin + half] + second[end : end + length - half]
        made.append(" ".join(parts))
    return made


def decide_all(texts: Sequence[str], stats: Any, workers: int) -> tuple[list[bool], float, NoveltyFilter]:
    """Return whether each is kept, the seconds that took, and the filter."""
    novelty = NoveltyFilter([], stats=stats, workers=workers)
    started = time.perf_counter()
    keep: list[bool] = []
    said = started
    for start in range(0, len(texts), _BATCH):
        keep += [decision.keep for decision in novelty.decide(texts[start : start + _BATCH])]
        if time.perf_counter() - said > 10:
            said = time.perf_counter()
            print(f"  {len(keep):,} of {len(texts):,} after {said - started:.0f} s", flush=True)
    return keep, time.perf_counter() - started, novelty


def rouge_seconds_per_pair(texts: Sequence[str], pairs: int, seed: int) -> float:
    """Time rouge-score's own function on a seeded sample of pairs of token lists."""
    rng = random.Random(seed)
    chosen = [[rouge_tokenize.tokenize(rng.choice(texts), None) for _ in range(2)] for _ in range(pairs)]
    started = time.perf_counter()
    for first, second in chosen:
        rouge_scorer._score_lcs(first, second)
    return (time.perf_counter() - started) / pairs


def cost_of_a_decision(pool: Sequence[str], fresh: Sequence[str], workers: int) -> dict[str, float]:
    """Time decisions against a pool: one instruction at a time, and as they come at 1,000 answers a second.

    A run takes up what has come since it last looked: at that rate about 20 answers in the 20 ms of a look.
    """
    novelty = NoveltyFilter(pool, stats="none", workers=workers)
    list(novelty.decide(fresh[:_TOGETHER]))
    half = len(fresh) // 2
    alone = seconds_per_decision(novelty, fresh[:half], 1)
    together = seconds_per_decision(novelty, fresh[half:], _TOGETHER)
    return {
        "microseconds_alone": round(1e6 * alone, 1),
        "microseconds_together": round(1e6 * together, 1),
        "share_of_wall_time_at_1000_instructions_per_second": round(1000 * together, 4),
    }


def seconds_per_decision(novelty: NoveltyFilter, texts: Sequence[str], together: int) -> float:
    """Return the mean time of a decision when so many instructions are asked about at once."""
    started = time.perf_counter()
    for start in range(0, len(texts), together):
        list(novelty.decide(texts[start : start + together]))
    return (time.perf_counter() - started) / len(texts)


def peak_gib() -> float:
    """Return the most memory that this process has had in use so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def said(name: str, work: Callable[..., Any], *given: Any) -> Any:
    """Say what is being done, and do it."""
    print(name, flush=True)
    return work(*given)


def plot(growth: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds over records on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.loglog([point["records"] for point in growth], [point["seconds"] for point in growth], "o-", label="decisions")
    last = growth[-1]
    axes.loglog(
        [last["records"], 10_000_000],
        [last["seconds"], last["seconds"] * (10_000_000 / last["records"]) ** 2],
        "--",
        label="estimate (quadratic)",
    )
    axes.set_xlabel("records")
    axes.set_ylabel("seconds")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_path", nargs="+", default=["seeds"], help="files to splice from (default: shipped seeds)"
    )
    parser.add_argument("--full_records", type=int, default=52_000, help="records with full statistics (default 52000)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000, 1_000_000], help="records, decisions alone"
    )
    parser.add_argument("--pools", type=int, nargs="+", default=[50_000, 1_000_000], help="pools to decide against")
    parser.add_argument("--decisions", type=int, default=2000, help="decisions timed against each pool (default 2000)")
    parser.add_argument("--rouge_pairs", type=int, default=20_000, help="pairs that rouge-score is timed on")
    parser.add_argument("--workers", type=int, default=-1, help="threads (default: one for each core)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the splicing and of the sample")
    parser.add_argument("--plot", type=Path, help="PNG to write the growth to")
    given = parser.parse_args()
    sources = [
        instruction_of(row, f"{path}: record {number}")
        for path in map(source_path, given.data_path)
        for number, row in enumerate(read_rows(path))
    ]
    most = max([given.full_records, *given.sizes, *given.pools])
    texts = said(f"splicing {most:,} records", splice, sources, most + given.decisions, given.seed)
    sample = texts[: given.full_records]
    decide_all(sample[:3000], "full", given.workers)  # compiled, or loaded, before anything is timed
    decide_all(sample[:3000], "none", given.workers)

    before = said("rouge-score on a sample of pairs", rouge_seconds_per_pair, sample, given.rouge_pairs, 1)
    full_keep, full_seconds, novelty = said(
        f"full statistics, {len(sample):,} records", decide_all, sample, "full", given.workers
    )
    after = rouge_seconds_per_pair(sample, given.rouge_pairs, 2)
    per_pair = (before + after) / 2
    pairs, pool = 0, 0
    for keep in full_keep:
        pairs += pool
        pool += keep
    full = {
        "records": len(sample),
        "kept": pool,
        "pairs": pairs,
        "seconds": round(full_seconds, 2),
        "records_per_second": round(len(sample) / full_seconds, 1),
        "rouge_score_microseconds_per_pair": round(1e6 * per_pair, 2),
        "rouge_score_seconds_estimated_from_the_sample": round(per_pair * pairs),
        "ratio": round(per_pair * pairs / full_seconds),
    }
    print(json.dumps(full), flush=True)
    del novelty

    growth = []
    for size in sorted(given.sizes):
        keep, seconds, novelty = said(
            f"decisions alone, {size:,} records", decide_all, texts[:size], "none", given.workers
        )
        common = min(size, len(full_keep))
        if keep[:common] != full_keep[:common]:
            raise SystemExit(f"the decisions on the first {common} records differ from those of the exact scores")
        growth.append(
            {
                "records": size,
                "kept": sum(keep),
                "seconds": round(seconds, 2),
                "records_per_second": round(size / seconds),
                "kept_equal_to_exact_scores_on": common,
                "peak_gib": round(peak_gib(), 2),
            }
        )
        print(json.dumps(growth[-1]), flush=True)
    del novelty
    decisions = {
        str(size): said(
            f"decisions against a pool of {size:,}",
            cost_of_a_decision,
            texts[:size],
            texts[most : most + given.decisions],
            given.workers,
        )
        for size in sorted(given.pools)
    }
    if given.plot:
        plot(growth, given.plot)
    last = growth[-1]
    print(
        json.dumps(
            {
                "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
                "tokens_per_record": round(sum(len(tokenize(text)) for text in texts[:20_000]) / min(most, 20_000), 1),
                "full": full,
                "decisions_alone": growth,
                "estimate_for_10_million_seconds": round(last["seconds"] * (10_000_000 / last["records"]) ** 2),
                "decisions_against_a_pool": decisions,
            }
        )
    )


if __name__ == "__main__":
    main()
