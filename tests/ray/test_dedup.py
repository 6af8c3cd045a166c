"""Shards as real actors: the same results, also when one is killed."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from alpaca_ray.dedup import output as dedup_output
from alpaca_ray.dedup import run as dedup_run
from alpaca_ray.dedup.actors import ActorShard, shard_maker
from alpaca_ray.dedup.pipeline import dedup
from alpaca_ray.dedup.stream import read_items
from alpaca_ray.novelty.filter import NoveltyFilter
from alpaca_ray.novelty.search import Stats
from alpaca_ray.novelty.tokens import TokenLists
from alpaca_ray.settings.dedup import DedupSettings

pytestmark = pytest.mark.ray

WORDS = [
    "write",
    "a",
    "poem",
    "about",
    "the",
    "sea",
    "and",
    "list",
    "five",
    "names",
    "of",
    "rivers",
    "in",
    "Peru",
    "explain",
    "why",
    "it",
    "is",
    "so",
]


def texts(count: int) -> list[str]:
    rng = random.Random(9)
    found: list[str] = []
    for _ in range(count):
        words = rng.choice(found).split() if found and rng.random() < 0.5 else rng.choices(WORDS, k=rng.randint(3, 20))
        words[rng.randrange(len(words))] = rng.choice([*WORDS, f"n{rng.randrange(99)}"])
        found.append(" ".join(words))
    return found


def ask_until_it_is_dead(actor: Any) -> None:
    while True:  # a killed actor dies a moment later
        ray.get(actor.search.remote(TokenLists.of([]), TokenLists.of([])))


@pytest.mark.parametrize("stats", ["full", "top", "none"])
def test_actors_decide_as_one_process_also_when_one_is_killed(ray_cluster: None, stats: Stats) -> None:
    given = texts(160)
    alone = NoveltyFilter(given[:20], workers=1, stats=stats)
    expected = [*alone.decide(given[20:90]), *alone.decide(given[90:])]
    made: list[ActorShard] = []
    plain = shard_maker()

    def make(stats: Stats, threshold: float) -> Any:
        made.append(plain(stats, threshold))  # type: ignore[arg-type]
        return made[-1]

    novelty = NoveltyFilter(given[:20], stats=stats, make_shard=make, num_shards=3)
    try:
        first = list(novelty.decide(given[20:90]))
        ray.kill(made[1].actor)
        with pytest.raises(RayActorError):
            ask_until_it_is_dead(made[1].actor)
        second = list(novelty.decide(given[90:]))
    finally:
        novelty.close()
    assert [*first, *second] == expected
    assert len(made) == 4


def test_shards_reserve_no_cpu(ray_cluster: None) -> None:
    before = ray.available_resources().get("CPU")
    novelty = NoveltyFilter(texts(10), make_shard=shard_maker(), num_shards=5)
    assert ray.available_resources().get("CPU") == before
    assert len(list(novelty.decide(texts(40)))) == 40
    novelty.close()


def test_the_job_with_shards_writes_the_same_files(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup_run, "_BATCH", 64)  # so that most records are compared with what the shards hold
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"instruction": text, "output": "o"}) + "\n" for text in texts(300)))
    written = []
    for shards in (1, 2):
        given = {"data_path": [str(data)], "output_dir": str(tmp_path / str(shards)), "num_shards": shards}
        folder = dedup(DedupSettings.resolve(given))
        written.append([(folder / name).read_bytes() for name in ("kept.jsonl", "rejected.jsonl")])
    assert written[0] == written[1]
    assert all(len(part) > 1000 for part in written[0])
    # A dropped record whose nearest was kept in an earlier batch was found by a shard.
    place = {text: number for number, text in reversed([*enumerate(texts(300))])}
    rejected = [json.loads(line) for line in written[0][1].splitlines()]
    assert sum(place[row["most_similar"]] // 64 < row["entry"] // 64 for row in rejected) > 20


def test_a_stopped_job_with_shards_is_gone_on_with(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup_run, "_BATCH", 32)
    monkeypatch.setattr(dedup_output, "_SECONDS_BETWEEN_NOTES", 0)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"instruction": text, "output": "o"}) + "\n" for text in texts(200)))

    def stopped(sources: Any) -> Any:
        yield from itertools.islice(read_items(sources), 130)
        raise KeyboardInterrupt

    def job(name: str, **flags: Any) -> list[bytes]:
        given = {"data_path": [str(data)], "output_dir": str(tmp_path / name), "num_shards": 2, **flags}
        folder = dedup(DedupSettings.resolve(given))
        return [(folder / name).read_bytes() for name in ("kept.jsonl", "rejected.jsonl")]

    with monkeypatch.context() as patch:
        patch.setattr(dedup_run, "read_items", stopped)
        with pytest.raises(KeyboardInterrupt):
            job("out")
    # The number of shards is no part of what a run is.
    assert job("out", resume=True, num_shards=3) == job("whole", num_shards=1)
