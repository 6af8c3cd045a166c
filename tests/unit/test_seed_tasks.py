"""The shipped seed tasks hold what the README says of them, and the originals' file form loads."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist
from rouge_score import rouge_scorer, tokenize

from alpaca_ray.errors import DataError
from alpaca_ray.records import read_records, read_seed_tasks, shipped_seed_path


@pytest.fixture(scope="module")
def raw() -> list[dict]:
    return [json.loads(line) for line in shipped_seed_path().read_text(encoding="utf-8").splitlines()]


def test_form(raw: list[dict]) -> None:
    assert len(raw) >= 175
    for number, task in enumerate(raw):
        assert list(task) == ["id", "name", "instruction", "instances", "is_classification"]
        assert task["id"] == f"seed_task_{number}"
        assert [list(instance) for instance in task["instances"]] == [["input", "output"]]
        assert task["instances"][0]["output"].strip()
    assert len({task["name"] for task in raw}) == len(raw)


def test_diversity(raw: list[dict]) -> None:
    with_input = sum(bool(task["instances"][0]["input"]) for task in raw) / len(raw)
    assert 0.35 <= with_input <= 0.45
    questions = {"what", "why", "how", "who", "which", "when", "where", "is", "are", "does", "do", "can", "if", "in"}
    verbs = {task["instruction"].split()[0].lower().strip(",:") for task in raw} - questions
    assert len(verbs) >= 60
    assert 0.05 <= sum(task["is_classification"] for task in raw) / len(raw) <= 0.3


def test_no_two_instructions_above_the_novelty_threshold(raw: list[dict]) -> None:
    tokens = [tokenize.tokenize(task["instruction"], None) for task in raw]
    scores = cdist(tokens, tokens, scorer=Indel.normalized_similarity)
    np.fill_diagonal(scores, 0)
    closest = np.unravel_index(scores.argmax(), scores.shape)
    first, second = (raw[index]["instruction"] for index in closest)
    exact = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(first, second)["rougeL"].fmeasure
    assert exact == pytest.approx(scores.max())
    assert exact < 0.7, (first, second)


def test_the_packages_own_reader_keeps_every_task(raw: list[dict]) -> None:
    tasks = read_seed_tasks("seeds")
    assert [task["instruction"] for task in tasks] == [task["instruction"] for task in raw]
    assert [task["output"] for task in tasks] == [task["instances"][0]["output"] for task in raw]
    assert all(first["id"] != second["id"] for first, second in combinations(tasks, 2))


def test_the_originals_form_loads(tmp_path: Path) -> None:
    path = tmp_path / "seed_tasks.jsonl"
    task = {"id": "seed_task_0", "name": "n", "instruction": "Add them.", "is_classification": False}
    instances = [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}]
    path.write_text(json.dumps({**task, "instances": instances}) + "\n")
    assert [record["output"] for record in read_seed_tasks(str(path))] == ["3"]
    assert [record["id"] for record in read_records(str(path))] == ["seed_task_0", "seed_task_0-1"]


def test_a_task_without_instances_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "seed_tasks.jsonl"
    path.write_text(json.dumps({"instruction": "Add them.", "instances": []}) + "\n")
    with pytest.raises(DataError, match=r"seed_tasks\.jsonl, line 1: 'instances'"):
        read_seed_tasks(str(path))


def test_the_original_seed_file_where_it_is_at_hand() -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "seed_tasks.jsonl"
    if not path.is_file():
        pytest.skip("the original's seed_tasks.jsonl is not part of this repository")
    assert len(read_seed_tasks(str(path))) == 175
