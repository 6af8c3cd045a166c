"""How fast instructions are compared: with full statistics against rouge-score, decisions alone up to a million.

Records are spliced from real instructions with a seed: the beginning of one and the end of another, about 16 tokens,
and every fifth a near-duplicate of an earlier one. rouge-score would take core-days for all pairs: its functions are
timed on a seeded sample of the same pairs, in the same run. The kept set of every run is compared with that of a brute
force over all pairs (``brute_force.py``: rapidfuzz and numpy, nothing of ours) on the first records. Each size of the
decisions alone runs in a process of its own, so that its peak memory is its own. Prints one JSON object as its last
line.

    python benchmarks/dedup.py --data_path FILES --plot growth.png
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import random
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from brute_force import kept_by_brute_force  # type: ignore[import-not-found]
from pydantic import PositiveInt
from rouge_score import rouge_scorer
from rouge_score import tokenize as rouge_tokenize

from alpaca_ray.dedup.stream import instruction_of
from alpaca_ray.errors import AlpacaRayError, OutputError, run_main
from alpaca_ray.machine import cores
from alpaca_ray.novelty.filter import NoveltyFilter
from alpaca_ray.novelty.tokens import tokenize
from alpaca_ray.records import source_path
from alpaca_ray.rows import read_rows
from alpaca_ray.settings.base import Settings, setting
from alpaca_ray.settings.cli import parse_settings

_THRESHOLD = 0.7
_ANSWERS = 1000  # a second
_LOOK = 0.02  # seconds from one look at what has come to the next, in a run
_BAR = 0.05  # share of the wall time that decisions may take
_BATCH = 8192


class Benchmark(Settings):
    """What to measure, and how much of it."""

    data_path: list[str] = setting(["seeds"], "Files to splice from ('seeds': the shipped tasks).")
    full_records: int = setting(52_000, "Records with full statistics.", ge=2)
    sizes: list[PositiveInt] = setting([10_000, 50_000, 200_000, 1_000_000], "Records, decisions alone.")
    proof_records: int = setting(50_000, "Records whose kept set the brute force proves.", ge=2)
    pools: list[PositiveInt] = setting([50_000, 1_000_000], "Pools to decide against.")
    answer_sizes: list[PositiveInt] = setting([1, 4, 16], "Instructions an answer, for the cost of decisions.")
    decisions: int = setting(2000, "Decisions timed for each of them, at least.", ge=1)
    rouge_pairs: int = setting(20_000, "Pairs that rouge-score is timed on, twice.", ge=1)
    workers: int | None = setting(None, "Threads. By default one for each core.", ge=1)
    seed: int = setting(1, "Seed of the splicing and of the sample.")
    plot: str | None = setting(None, "PNG to write the growth to.")


def main() -> None:
    """Measure and print one JSON object."""
    settings = parse_settings(Benchmark, description="Speed of the novelty rule on spliced instructions.")
    if settings.plot:
        check_plot(Path(settings.plot))
    sources = [
        instruction_of(row, f"{path}: record {number}")
        for path in map(source_path, settings.data_path)
        for number, row in enumerate(read_rows(path))
    ]
    needed = max(settings.full_records, settings.proof_records)
    print(f"splicing {needed:,} records", flush=True)
    texts = splice(sources, needed, settings.seed)
    proof = prove(texts[: settings.proof_records], settings)
    report = {
        "machine": f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}",
        "tokens_per_record": round(sum(len(tokenize(text)) for text in texts[:20_000]) / len(texts[:20_000]), 1),
        "brute_force": {name: value for name, value in proof.items() if name != "keep"},
        "full": full_statistics(texts[: settings.full_records], proof["keep"], settings),
    }
    growth = [in_process(measure_size, sources, size, proof["keep"], settings) for size in sorted(settings.sizes)]
    for before, point in itertools.pairwise(growth):
        if point["records"] > before["records"]:
            ratio = math.log(point["seconds"] / before["seconds"])
            point["exponent"] = round(ratio / math.log(point["records"] / before["records"]), 2)
    report["decisions_alone"] = growth
    report["upper_bound_for_10_million_seconds"] = round(quadratic(growth[-1]))
    report["decisions_against_a_pool"] = {
        str(size): in_process(measure_pool, sources, size, settings) for size in sorted(settings.pools)
    }
    print(json.dumps(report), flush=True)
    if settings.plot:
        plot(growth, Path(settings.plot))


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


def prove(texts: Sequence[str], settings: Benchmark) -> dict[str, Any]:
    """Decide by brute force over all pairs, and say how long that took."""
    print(f"brute force, {len(texts):,} records", flush=True)
    started = time.perf_counter()
    keep, pairs = kept_by_brute_force(texts, _THRESHOLD, settings.workers or -1)
    seconds = round(time.perf_counter() - started, 1)
    print(f"  {pairs:,} pairs in {seconds} s", flush=True)
    return {"records": len(texts), "kept": sum(keep), "pairs": pairs, "seconds": seconds, "keep": keep}


def check(keep: Sequence[bool], proof: Sequence[bool]) -> int:
    """Compare decisions with those of the brute force, and return on how many records.

    Raises:
        AlpacaRayError: they differ.
    """
    common = min(len(keep), len(proof))
    for number in range(common):
        if keep[number] != proof[number]:
            raise AlpacaRayError(f"the decision on record {number} is not that of the brute force")
    return common


def full_statistics(texts: Sequence[str], proof: Sequence[bool], settings: Benchmark) -> dict[str, Any]:
    """Time full statistics, and rouge-score's function before and after."""
    workers = settings.workers or -1
    decide_all(texts[:3000], "full", workers)  # compiled, or loaded, before anything is timed
    before = rouge_seconds_per_pair(texts, settings.rouge_pairs, 1)
    print(f"full statistics, {len(texts):,} records", flush=True)
    keep, seconds = decide_all(texts, "full", workers)
    per_pair = (before + rouge_seconds_per_pair(texts, settings.rouge_pairs, 2)) / 2
    pairs, pool = 0, 0
    for kept in keep:
        pairs += pool
        pool += kept
    found = {
        "records": len(texts),
        "kept": pool,
        "kept_proven_on": check(keep, proof),
        "pairs": pairs,
        "seconds": round(seconds, 2),
        "records_per_second": round(len(texts) / seconds, 1),
        "rouge_score_microseconds_per_pair": round(1e6 * per_pair, 2),
        "rouge_score_seconds_estimated_from_the_sample": round(per_pair * pairs),
        "ratio": round(per_pair * pairs / seconds),
    }
    print(json.dumps(found), flush=True)
    return found


def in_process(work: Any, *given: Any) -> Any:
    """Do a piece of work in a process that did nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(work, *given).result()


def measure_size(sources: Sequence[str], size: int, proof: Sequence[bool], settings: Benchmark) -> dict[str, Any]:
    """Time decisions alone, with the peak memory of the process."""
    workers = settings.workers or -1
    texts = splice(sources, size, settings.seed)
    decide_all(texts[:3000], "none", workers)
    print(f"decisions alone, {size:,} records", flush=True)
    keep, seconds = decide_all(texts, "none", workers)
    point = {
        "records": size,
        "kept": sum(keep),
        "seconds": round(seconds, 3),
        "records_per_second": round(size / seconds),
        "kept_proven_on": check(keep, proof),
        "peak_gib": round(peak_gib(), 2),
    }
    print(json.dumps(point), flush=True)
    return point


def measure_pool(sources: Sequence[str], size: int, settings: Benchmark) -> dict[str, Any]:
    """Time decisions against a pool as they come at so many answers a second.

    A run takes up what has come since it last looked: the instructions of 20 answers in the 20 ms of a look.
    """
    looks = {count: round(_ANSWERS * _LOOK) * count for count in settings.answer_sizes}
    needed = {count: -(-settings.decisions // together) * together for count, together in looks.items()}
    texts = splice(sources, size + 2 * sum(needed.values()) + 2 * max(looks.values()), settings.seed)
    fresh = iter(texts[size:])
    found: dict[str, Any] = {}
    for stats in ("none", "full"):
        print(f"decisions against a pool of {size:,}, statistics {stats}", flush=True)
        novelty = NoveltyFilter(texts[:size], stats=stats, workers=settings.workers or -1)
        list(novelty.decide([next(fresh) for _ in range(max(looks.values()))]))
        found[stats] = {}
        for count, together in looks.items():
            asked = [next(fresh) for _ in range(needed[count])]
            started = time.perf_counter()
            for start in range(0, len(asked), together):
                list(novelty.decide(asked[start : start + together]))
            each = (time.perf_counter() - started) / len(asked)
            share = _ANSWERS * count * each
            found[stats][str(count)] = {
                "microseconds_a_decision": round(1e6 * each, 1),
                f"share_of_wall_time_at_{_ANSWERS}_answers_a_second": round(share, 4),
                f"within_{_BAR:.0%}": share <= _BAR,
            }
        print(json.dumps(found[stats]), flush=True)
        novelty.close()
        del novelty
    return found


def decide_all(texts: Sequence[str], stats: Any, workers: int) -> tuple[list[bool], float]:
    """Return whether each is kept, and the seconds that took."""
    novelty = NoveltyFilter([], threshold=_THRESHOLD, stats=stats, workers=workers)
    started = said = time.perf_counter()
    keep: list[bool] = []
    for start in range(0, len(texts), _BATCH):
        keep += [decision.keep for decision in novelty.decide(texts[start : start + _BATCH])]
        if time.perf_counter() - said > 10:
            said = time.perf_counter()
            print(f"  {len(keep):,} of {len(texts):,} after {said - started:.0f} s", flush=True)
    seconds = time.perf_counter() - started
    novelty.close()
    return keep, seconds


def rouge_seconds_per_pair(texts: Sequence[str], pairs: int, seed: int) -> float:
    """Time rouge-score's own function on a seeded sample of pairs of token lists."""
    rng = random.Random(seed)
    chosen = [[rouge_tokenize.tokenize(rng.choice(texts), None) for _ in range(2)] for _ in range(pairs)]
    started = time.perf_counter()
    for first, second in chosen:
        rouge_scorer._score_lcs(first, second)
    return (time.perf_counter() - started) / pairs


def peak_gib() -> float:
    """Return the most memory that this process has had in use so far, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says of a new process counts that of the one that started it
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 2**20
    unit = 2**30 if platform.system() == "Darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def quadratic(point: dict[str, Any], records: int = 10_000_000) -> float:
    """Return the seconds that so many records would take if the time grew with their square."""
    return float(point["seconds"] * (records / point["records"]) ** 2)


def check_plot(path: Path) -> None:
    """Check that a plot can be written, before hours are spent on what it shows.

    Raises:
        OutputError: it cannot.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--plot {path}: there is no folder {path.absolute().parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise OutputError(f"--plot {path}: cannot be written")
    import matplotlib  # noqa: F401 - missing now rather than at the end


def plot(growth: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds over records on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.loglog([point["records"] for point in growth], [point["seconds"] for point in growth], "o-", label="decisions")
    last = growth[-1]
    if last["records"] < 10_000_000:
        axes.loglog(
            [last["records"], 10_000_000],
            [last["seconds"], quadratic(last)],
            "--",
            label="upper bound (quadratic)",
        )
    axes.set_xlabel("records")
    axes.set_ylabel("seconds")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150, format="png")


if __name__ == "__main__":
    run_main(main)
