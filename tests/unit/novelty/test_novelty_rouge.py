"""The pool and the filter against rouge-score's own functions."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score import tokenize as rouge_tokenize

from alpaca_ray.novelty.filter import NoveltyFilter
from alpaca_ray.novelty.pool import RougePool
from alpaca_ray.novelty.tokens import Vocabulary, tokenize

WORDS = (
    *("write", "a", "poem", "about", "the", "sea", "and", "list", "five", "names", "of", "rivers", "in", "Peru"),
    *("explain", "why", "3", "x", "7", "is", "21", "Straße", "naïve"),
)


def reference(seeds: list[str], candidates: list[str], threshold: float = 0.7) -> list[dict[str, object]]:
    """Stanford's loop with rouge-score's functions, one candidate after the other."""
    instructions = list(seeds)
    tokens = [rouge_tokenize.tokenize(text, None) for text in instructions]
    result: list[dict[str, object]] = []
    for text in candidates:
        new = rouge_tokenize.tokenize(text, None)
        scores = [rouge_scorer._score_lcs(new, other).fmeasure for other in tokens]
        keep = not scores or not max(scores) > threshold
        nearest = {instructions[index]: scores[index] for index in np.argsort(scores)[-10:][::-1]}
        result.append({"keep": keep, "nearest": nearest, "mean": float(np.mean(scores)) if scores else 0.0})
        if keep:
            instructions.append(text)
            tokens.append(new)
    return result


def random_text(rng: random.Random, known: list[str]) -> str:
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(["", "  ", "?!", "中文的指令", "écrire ça", "🙂🙂", "\u2028"])
    if kind < 0.2 and known:
        return rng.choice(known)
    if kind < 0.45 and known:
        words = rng.choice(known).split() or ["x"]
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        return " ".join(words)
    if kind < 0.5:
        return " ".join(rng.choices(WORDS, k=300))
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 25)))


@pytest.mark.parametrize("seed", range(30))
def test_filter_equals_rouge_score(seed: int) -> None:
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(45):
        texts.append(random_text(rng, texts))
    seeds, candidates = texts[:8], texts[8:]
    expected = reference(seeds, candidates)
    novelty = NoveltyFilter(seeds, workers=1)
    found = []
    while candidates:  # decided in groups of random size, as answers bring them
        group, candidates = candidates[: (size := rng.randint(1, 9))], candidates[size:]
        found += list(novelty.decide(group))
    assert len({decision.keep for decision in found}) == 2, "a stream in which nothing is decided proves nothing"
    for decision, wanted in zip(found, expected, strict=True):
        assert decision.keep == wanted["keep"]
        assert list(decision.most_similar.items()) == list(wanted["nearest"].items())  # type: ignore[attr-defined]
        assert decision.average == wanted["mean"]


def test_a_score_of_exactly_the_threshold_is_kept() -> None:
    # 7 common tokens of 10 and 10: precision = recall = F1 = 0.7 in rouge-score's arithmetic.
    first = "a b c d e f g h i j"
    second = "a b c d e f g x y z"
    score = rouge_scorer._score_lcs(first.split(), second.split()).fmeasure
    (decision,) = NoveltyFilter([first], workers=1).decide([second])
    assert decision.most_similar[first] == score
    assert decision.keep == (not score > 0.7)
    (above,) = NoveltyFilter([first], workers=1).decide(["a b c d e f g h y z"])
    assert not above.keep


def test_every_pair_of_lengths_gives_the_same_bits() -> None:
    pool = RougePool(workers=1)
    lengths = range(0, 40)
    tokens = [f"t{number}" for number in range(40)]
    for length in lengths:
        pool.add(tokens[:length])
    for length in lengths:
        expected = [rouge_scorer._score_lcs(tokens[:length], tokens[:other]).fmeasure for other in lengths]
        assert pool.score(tokens[:length]).tolist() == expected


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_tokens_equal_rouge_score(text: str) -> None:
    assert tokenize(text) == rouge_tokenize.tokenize(text, None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="abc ", max_size=30), min_size=1, max_size=12), st.text(alphabet="abcd ", max_size=30))
def test_pool_scores_equal_rouge_score(pool_texts: list[str], query: str) -> None:
    pool = RougePool(workers=1)
    for text in pool_texts:
        pool.add(tokenize(text))
    expected = [rouge_scorer._score_lcs(tokenize(query), tokenize(text)).fmeasure for text in pool_texts]
    assert pool.score(tokenize(query)).tolist() == expected


def test_rouge_scorer_is_asked_the_same_way_by_its_public_interface() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    pool = RougePool(workers=1)
    pool.add(tokenize("Name the rivers of Peru."))
    assert pool.score(tokenize("Name three rivers in Peru"))[0] == (
        scorer.score("Name three rivers in Peru", "Name the rivers of Peru.")["rougeL"].fmeasure
    )


def test_more_tokens_than_the_basic_plane_has_characters() -> None:
    vocabulary = Vocabulary()
    words = [f"w{number}" for number in range(70_000)]
    encoded = vocabulary.encode(words)
    assert len(set(encoded)) == len(words)
    assert not any(0xD800 <= ord(character) <= 0xDFFF for character in encoded)
    pool = RougePool(workers=1)
    pool.add(words)
    pool.add(words[::-1])
    assert pool.score(words[60_000:60_010]).tolist() == [
        rouge_scorer._score_lcs(words[60_000:60_010], words).fmeasure,
        2 * (1 / 70_000) * 0.1 / (1 / 70_000 + 0.1),
    ]


def test_a_caller_that_stops_leaves_the_rest_out_of_the_pool() -> None:
    novelty = NoveltyFilter(["one two three four"], workers=1)
    decisions = novelty.decide(["alpha beta gamma delta", "red green blue white"])
    assert next(iter(decisions)).keep
    assert novelty.instructions == ["one two three four", "alpha beta gamma delta"]


def test_an_empty_pool_keeps_everything() -> None:
    first, second = NoveltyFilter([], workers=1).decide(["one two three", "one two three"])
    assert (first.keep, first.average, first.most_similar) == (True, 0.0, {})
    assert not second.keep
