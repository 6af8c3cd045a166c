"""The filter against rouge-score's own functions run one by one, with all statistics and numbers of shards."""

from __future__ import annotations

import functools
import random

import pytest
from novelty_support import Expected, plain_shards, reference, score, stream, stream_with_reference
from rouge_score import rouge_scorer

from alpaca_ray.errors import ClusterError
from alpaca_ray.novelty import filter as filter_module
from alpaca_ray.novelty.filter import Decision, NoveltyFilter
from alpaca_ray.novelty.search import Found, LocalSearcher, Stats
from alpaca_ray.novelty.tokens import TokenLists, tokenize_unicode

SHARDS = (1, 2, 5)


def decide(
    seeds: list[str],
    candidates: list[str],
    *,
    threshold: float = 0.7,
    stats: Stats = "full",
    shards: int = 0,
    dies_at: set[int] | None = None,
    order: int = 0,
) -> list[Decision]:
    """Decide in groups of random size, as answers bring them. ``shards``: 0 for none."""
    novelty = NoveltyFilter(
        seeds,
        threshold=threshold,
        workers=1,
        stats=stats,
        make_shard=plain_shards(dies_at) if shards else None,
        num_shards=shards,
    )
    rng = random.Random(order)
    found: list[Decision] = []
    while candidates:
        group, candidates = candidates[: (size := rng.randint(1, 19))], candidates[size:]
        found += list(novelty.decide(group))
    novelty.close()
    return found


def assert_full(found: list[Decision], expected: list[Expected]) -> None:
    for decision, wanted in zip(found, expected, strict=True):
        assert decision.keep == wanted.keep
        assert list(decision.most_similar.items()) == list(wanted.nearest.items())
        assert decision.average == wanted.mean


def assert_nearest(found: list[Decision], expected: list[Expected]) -> None:
    """A dropped instruction names an instruction with the highest score there is, the earliest of them."""
    for decision, wanted in zip(found, expected, strict=True):
        assert decision.keep == wanted.keep
        assert decision.average is None
        if not decision.keep:
            assert next(iter(decision.most_similar.values())) == max(wanted.scores.values())
            assert next(iter(decision.most_similar)) == max(wanted.scores, key=lambda text: wanted.scores[text])


@pytest.mark.parametrize("seed", range(100))
def test_full_equals_rouge_score_at_any_number_of_shards(seed: int) -> None:
    seeds, candidates, expected = stream_with_reference(seed)
    assert len({wanted.keep for wanted in expected}) == 2, "a stream in which nothing is decided proves nothing"
    for shards in (0, *SHARDS):
        assert_full(decide(seeds, candidates, shards=shards, order=seed), expected)


def test_the_streams_hold_scores_of_exactly_the_threshold() -> None:
    exactly = kept = 0
    for seed in range(100):
        for wanted in stream_with_reference(seed)[2]:
            highest = max(wanted.scores.values(), default=0)
            exactly += highest == 0.7
            kept += highest == 0.7 and wanted.keep
    assert exactly == kept > 10


@pytest.mark.parametrize("seed", range(100))
def test_decisions_alone_are_the_same(seed: int) -> None:
    seeds, candidates, expected = stream_with_reference(seed)
    for shards in (0, *SHARDS):
        found = decide(seeds, candidates, stats="none", shards=shards, order=seed)
        assert_nearest(found, expected)
        assert all(not decision.most_similar for decision in found if decision.keep)


@pytest.mark.parametrize("seed", range(40))
def test_top_has_the_ten_highest_scores(seed: int) -> None:
    seeds, candidates, expected = stream_with_reference(seed)
    for shards in (0, *SHARDS):
        found = decide(seeds, candidates, stats="top", shards=shards, order=seed)
        assert_nearest(found, expected)
        for decision, wanted in zip(found, expected, strict=True):
            # The same text twice in the pool is one line of the result, here as in the original.
            assert list(decision.most_similar.values()) == sorted(decision.most_similar.values(), reverse=True)
            assert decision.most_similar.items() <= wanted.scores.items()
            if len(wanted.scores) >= 10:
                lowest = min(decision.most_similar.values())
                above = {text for text, value in wanted.scores.items() if value > lowest}
                assert above <= set(decision.most_similar)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1 / 3, 0.5, 2 / 3, 0.75, 0.8, 0.9, 0.99, 1.0])
def test_every_threshold(threshold: float) -> None:
    for seed in range(1000, 1006):
        seeds, candidates = stream(seed, seeds=2)
        expected = reference(seeds, candidates, threshold)
        assert_full(decide(seeds, candidates, threshold=threshold), expected)
        for shards in (0, 2):
            assert_nearest(decide(seeds, candidates, threshold=threshold, stats="none", shards=shards), expected)
    assert (threshold == 1.0) == all(wanted.keep for wanted in expected)


@functools.cache
def many() -> tuple[list[str], list[str], list[Expected]]:
    """Enough instructions for segments and a merge, with what the sequence says of the last 120."""
    rng = random.Random(5)
    words = [f"w{number}" for number in range(400)]
    texts: list[str] = []
    for _ in range(720):
        if texts and rng.random() < 0.5:
            changed = rng.choice(texts).split()
            for _ in range(rng.randint(0, 4)):
                changed[rng.randrange(len(changed))] = rng.choice(words)
            texts.append(" ".join(changed))
        else:
            texts.append(" ".join(rng.choices(words, k=rng.choice([3, 8, 12, 16, 23, 24, 25, 47]))))
    return texts[:600], texts[600:], reference(texts[:600], texts[600:])


@pytest.mark.parametrize("stats", ["full", "none"])
def test_a_large_pool_equals_rouge_score(stats: Stats) -> None:
    known, candidates, expected = many()
    found = list(NoveltyFilter(known, workers=2, stats=stats).decide(candidates))
    assert 20 < sum(wanted.keep for wanted in expected) < 100
    if stats == "full":
        assert_full(found, expected)
    else:
        assert_nearest(found, expected)


@pytest.mark.parametrize("stats", ["full", "top", "none"])
def test_a_shard_that_dies_is_made_anew(stats: Stats) -> None:
    seeds, candidates = stream(7, length=120)
    whole = decide(seeds, candidates, stats=stats, shards=3)
    assert decide(seeds, candidates, stats=stats, shards=3, dies_at={2, 9, 13, 14, 20}) == whole


def test_a_shard_that_keeps_dying_ends_with_a_clear_error() -> None:
    seeds, candidates = stream(7)
    with pytest.raises(ClusterError, match="shard 1 of the novelty pool died 4 times in a row"):
        decide(seeds, candidates, shards=2, dies_at={2, 3, 4, 5})


def test_full_statistics_take_bounded_memory_against_a_large_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, candidates = stream(3, length=260, seeds=60)
    whole = list(NoveltyFilter(seeds, workers=1).decide(candidates))
    cells: list[int] = []
    search = LocalSearcher.search

    def counted(searcher: LocalSearcher, additions: TokenLists, queries: TokenLists) -> Found:
        found = search(searcher, additions, queries)
        assert found.rows is not None
        cells.append(found.rows.size)
        return found

    monkeypatch.setattr(LocalSearcher, "search", counted)
    monkeypatch.setattr(filter_module, "_CELLS", 4000)
    assert list(NoveltyFilter(seeds, workers=1).decide(candidates)) == whole
    assert max(cells) <= 32 * 260
    assert any(0 < size <= 4000 for size in cells)


def test_a_score_of_exactly_the_threshold_is_kept() -> None:
    first, second = "a b c d e f g h i j", "a b c d e f g x y z"
    assert score(first, second) == 0.7
    for stats in ("full", "top", "none"):
        novelty = NoveltyFilter([first], workers=1, stats=stats)  # type: ignore[arg-type]
        (at,) = novelty.decide([second])
        assert at.keep
        (above,) = NoveltyFilter([first], workers=1, stats=stats).decide(["a b c d e f g h y z"])  # type: ignore[arg-type]
        assert not above.keep
        assert above.most_similar[first] == score(first, "a b c d e f g h y z")


def test_the_public_interface_of_rouge_score_says_the_same() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    (decision,) = NoveltyFilter(["Name the rivers of Peru."], workers=1).decide(["Name three rivers in Peru"])
    wanted = scorer.score("Name three rivers in Peru", "Name the rivers of Peru.")["rougeL"].fmeasure
    assert decision.most_similar == {"Name the rivers of Peru.": wanted}
    assert decision.average == wanted


@pytest.mark.parametrize("stats", ["full", "top", "none"])
def test_a_caller_that_stops_leaves_the_rest_out_of_the_pool(stats: Stats) -> None:
    novelty = NoveltyFilter(["one two three four"], workers=1, stats=stats)
    decisions = novelty.decide(["alpha beta gamma delta", "red green blue white"])
    assert next(iter(decisions)).keep
    assert novelty.instructions == ["one two three four", "alpha beta gamma delta"]
    first, second = novelty.decide(["red green blue white", "alpha beta gamma delta"])
    assert (first.keep, second.keep) == (True, False)
    assert second.most_similar["alpha beta gamma delta"] == 1.0


def test_two_batches_at_once_are_refused() -> None:
    novelty = NoveltyFilter(["one two three four"], workers=1)
    first = iter(novelty.decide(["alpha beta gamma delta", "red green blue white"]))
    next(first)
    list(novelty.decide(["north south east west"]))
    with pytest.raises(RuntimeError, match="finish one decide"):
        next(first)


@pytest.mark.parametrize("stats", ["full", "top", "none"])
def test_an_empty_pool_keeps_everything(stats: Stats) -> None:
    first, second = NoveltyFilter([], workers=1, stats=stats).decide(["one two three", "one two three"])
    assert (first.keep, first.most_similar) == (True, {})
    assert first.average == (0.0 if stats == "full" else None)
    assert not second.keep
    assert second.most_similar == {"one two three": 1.0}
    assert list(NoveltyFilter([], workers=1, stats=stats).decide([])) == []


@pytest.mark.parametrize("stats", ["full", "top", "none"])
def test_the_unicode_tokenizer_finds_duplicates_that_the_original_cannot_see(stats: Stats) -> None:
    first, second = "写一首关于大海的诗。", "写一首关于大海的短诗"
    original = list(NoveltyFilter([first], workers=1, stats=stats).decide([second]))
    assert original[0].keep
    (decision,) = NoveltyFilter([first], workers=1, stats=stats, tokenizer="unicode").decide([second])
    assert not decision.keep
    (wanted,) = reference([first], [second], tokenize=tokenize_unicode)
    assert decision.most_similar == wanted.nearest
