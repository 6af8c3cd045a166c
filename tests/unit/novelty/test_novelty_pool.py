"""The pool's rows, scores and bounds against rouge-score's functions, pair by pair."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

import alpaca_ray
from alpaca_ray.novelty.pool import RougePool
from alpaca_ray.novelty.rouge import f1, f1_row, lcs_long, least_common
from alpaca_ray.novelty.signatures import Segment, signatures
from alpaca_ray.novelty.tokens import Vocabulary

LENGTHS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 128, 129, 255, 256, 300)


def lcs(first: list[str], second: list[str]) -> int:
    return int(rouge_scorer._lcs_table(first, second)[len(first)][len(second)])


def lists_of(rng: random.Random, count: int, words: int) -> list[list[str]]:
    return [[f"w{rng.randrange(words)}" for _ in range(rng.choice(LENGTHS))] for _ in range(count)]


@pytest.mark.parametrize("words", [2, 30, 2000])
def test_rows_of_every_length_equal_the_table(words: int) -> None:
    rng = random.Random(words)
    entries, queries = lists_of(rng, 12, words), lists_of(rng, 40, words)
    vocabulary = Vocabulary()
    pool = RougePool(workers=2)
    pool.add(vocabulary.encode(entries))
    rows = pool.rows(vocabulary.encode(queries))
    expected = [[lcs(query, entry) for entry in entries] for query in queries]
    assert rows.tolist() == expected


def test_every_pair_of_lengths_gives_the_bits_of_rouge_score() -> None:
    tokens = [f"t{number}" for number in range(70)]
    for target, prediction in itertools.product(range(70), repeat=2):
        common = min(target, prediction)
        expected = rouge_scorer._score_lcs(tokens[:target], tokens[:prediction]).fmeasure
        assert f1(common, target, prediction) == expected
        out = np.empty(1)
        f1_row(np.array([common], dtype=np.int32), target, np.array([prediction]), out)
        assert out[0] == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1))
def test_the_least_common_length_never_rules_out_too_much(target: int, prediction: int, floor: float) -> None:
    least = least_common(floor, target, prediction)
    for common in range(min(target, prediction) + 1):
        if f1(common, target, prediction) >= floor:
            assert common >= least
    for exact in {f1(common, target, prediction) for common in range(min(target, prediction) + 1)}:
        assert all(
            common >= least_common(exact, target, prediction)
            for common in range(min(target, prediction) + 1)
            if f1(common, target, prediction) >= exact
        )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(alphabet="abcde", max_size=90), min_size=1, max_size=8),
    st.text(alphabet="abcdef", max_size=90),
    st.sampled_from([1, 2, 16]),
)
def test_signatures_bound_the_overlap_from_above(texts: list[str], query: str, words: int) -> None:
    vocabulary = Vocabulary()
    entries, asked = vocabulary.encode(map(list, texts)), vocabulary.encode([list(query)])
    bits, mine = signatures(entries, words)[:-1], signatures(asked, words)[:-1]
    for number, text in enumerate(texts):
        shared = int(np.bitwise_count(bits[:, number] & mine[:, 0]).sum())
        excess = min(
            len(text) - int(np.bitwise_count(bits[:, number]).sum()), len(query) - int(np.bitwise_count(mine).sum())
        )
        assert lcs(list(text), list(query)) <= shared + excess


def test_the_groups_of_a_segment_cover_it() -> None:
    rng = random.Random(3)
    lists = Vocabulary().encode(lists_of(rng, 3000, 500))
    segment = Segment.of(signatures(lists, 1), np.arange(3000), lists.lengths)
    assert sorted(segment.entries) == list(range(3000))
    assert segment.groups[0, 3] == 0
    assert segment.groups[-1, 4] == 3000
    assert (segment.groups[1:, 3] == segment.groups[:-1, 4]).all()
    for shortest, longest, excess, start, end in segment.groups:
        lengths = lists.lengths[segment.entries[start:end]]
        assert (lengths.min(), lengths.max()) == (shortest, longest)
        set_bits = np.bitwise_count(segment.bits[0, start:end])
        assert (lengths - set_bits).max() == excess


@pytest.mark.parametrize(("threshold", "k"), [(0.7, 1), (0.0, 1), (1.0, 1), (0.3, 3), (-1.0, 10), (0.5, 1)])
def test_nearest_equals_brute_force(threshold: float, k: int) -> None:
    rng = random.Random(11)
    lists = lists_of(rng, 1200, 300)
    for number in range(100, 1200, 3):
        near = list(rng.choice(lists[:number]))
        for _ in range(min(len(near), rng.randint(0, 3))):
            near[rng.randrange(len(near))] = "new"
        lists[number] = near
    tokens = Vocabulary().encode(lists)
    pool = RougePool(workers=2)
    for start in range(0, 900, 300):  # three segments, merged or not, and a tail that is in none
        pool.add(tokens.select(range(start, start + 300)))
        pool.nearest(tokens.select([0]), 1, 0.9)
    pool.add(tokens.select(range(900, 1000)))
    queries = tokens.select(range(1000, 1200))
    rows = pool.rows(queries)
    scores, nearest = pool.nearest(queries, k, threshold)
    for number in range(len(queries)):
        exact = np.empty(len(pool))
        f1_row(rows[number], int(queries.lengths[number]), pool.lengths(), exact)
        order = [entry for entry in np.lexsort((np.arange(len(pool)), -exact))[:k] if exact[entry] > threshold]
        missing = [-1] * (k - len(order))
        assert nearest[number].tolist() == order + missing
        assert scores[number].tolist() == [exact[entry] for entry in order] + missing


def test_signatures_spare_nearly_all_pairs() -> None:
    rng = random.Random(2)
    words = [f"w{number}" for number in range(3000)]
    tokens = Vocabulary().encode([rng.choices(words, k=rng.randint(8, 24)) for _ in range(3000)])
    pool = RougePool(workers=1)
    pool.add(tokens.select(range(2000)))
    pool.nearest(tokens.select(range(2000, 3000)), 1, 0.7)
    assert pool.scored < 0.001 * 2000 * 1000


def test_very_long_lists() -> None:
    rng = random.Random(4)
    first, second = ([rng.randrange(50) for _ in range(size)] for size in (3000, 2500))
    masks = np.zeros(50, dtype=np.uint64)
    found = lcs_long(masks, np.array(first, dtype=np.int32), 0, 3000, np.array(second, dtype=np.int32), 0, 2500)
    previous = [0] * (len(second) + 1)
    for token in first:
        row = [0]
        for place, other in enumerate(second):
            row.append(previous[place] + 1 if token == other else max(previous[place + 1], row[-1]))
        previous = row
    assert found == previous[-1]
    assert not masks.any()


def test_compiled_code_is_kept_by_the_sources_it_came_from(tmp_path: Path) -> None:
    """A change in one file must not leave what another file's functions took over from it."""
    package = tmp_path / "alpaca_ray"
    shutil.copytree(Path(alpaca_ray.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import numpy as np; from alpaca_ray.novelty.filter import NoveltyFilter;"
        "a, b = NoveltyFilter(['a b c d'], workers=1, stats='none').decide(['a b x y', 'a b c e']); print(b.keep)"
    )

    def run() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def kept() -> set[str]:
        return {path.name.split("_")[-1].split("-")[0] for path in (package / "novelty").glob("__pycache__/*.nb[ic]")}

    assert run() == "False"
    before = kept()
    assert len(before) == 1
    rouge = package / "novelty" / "rouge.py"
    changed = rouge.read_text().replace("return 2 * precision * recall / (precision + recall)", "return 0.1")
    assert changed != rouge.read_text()
    rouge.write_text(changed)
    assert run() == "True"
    assert len(kept()) == 1, "machine code of sources that are gone stays for ever"
    assert not kept() & before
