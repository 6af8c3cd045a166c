"""Figures of records, and the account of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import STANFORD
from alpaca_ray.report.account import Account, account_of
from alpaca_ray.report.charts import histogram_top, percent, similarity_histogram
from alpaca_ray.report.measure import choose_ruler, coverage_rows, fields_of, measure
from alpaca_ray.report.metrics import Metrics
from alpaca_ray.report.source import Source, read_source

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "instruction": "Add the numbers.", "input": "1 2", "output": "3"},
    {"id": "b", "instruction": "Say nothing.", "output": " "},
    {"id": "c", "instruction": "Add the numbers.", "input": "1 2", "output": "3"},
    {
        "id": "d",
        "messages": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello to you"}],
    },
]


def folder(path: Path, **files: Any) -> Path:
    """Write a stage's folder: JSON values by file name, underscores for dots; lists of rows as JSON lines."""
    for name, content in files.items():
        lines = name.endswith("_jsonl")
        text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
        (path / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return path


def test_lengths_in_words_and_what_is_missing_or_repeated() -> None:
    found = measure(RECORDS, choose_ruler("words"))
    assert found.ruler.unit == "words"
    assert found.instruction.tolist() == [3, 2, 3, 2]
    assert found.input.tolist() == [2, 0, 2, 0]
    assert found.output.tolist() == [1, 0, 1, 3]
    assert found.example[0] == len((STANFORD.format(RECORDS[0]) + "3").split())
    assert found.example[3] == 5
    assert (found.with_input, found.without_output, found.repeated, found.chats) == (2, 1, 1, 1)


def test_only_records_that_are_equal_in_everything_are_repeats() -> None:
    record = {"id": "a", "instruction": "Add.", "input": "1", "output": "1"}
    others = [
        {**record, "input": "2"},
        {**record, "output": "2"},
        {**record, "instruction": "Sum."},
        {**record, "id": "b"},
    ]
    assert measure([record, *others], choose_ruler("words")).repeated == 1


def test_coverage_ends_where_everything_is_covered() -> None:
    records = [{"id": str(n), "instruction": "x " * n, "output": ""} for n in (1, 100, 200, 400)]
    found = measure(records, choose_ruler("words"))
    rows = dict(coverage_rows(found))
    assert rows[64] == 0.25
    assert rows[256] == 0.75
    assert rows[512] == 1
    assert 1024 not in rows
    assert found.covered(int(found.example[1])) == 0.5  # a length covers an example of exactly that length


def test_the_highest_similarity_of_each_record_that_carries_any() -> None:
    near = [{"x": 0.25, "y": 0.5}, {}, None, {"z": 0.125}, {"n": float("nan"), "h": 10**400, "s": "x"}]
    records = [
        {"id": str(n), "instruction": "a", "output": "b", "most_similar_instructions": v} for n, v in enumerate(near)
    ]
    assert measure(records, choose_ruler("words")).similarities.tolist() == [0.5, 0.125]


def test_half_a_surrogate_pair_is_readable_text_afterwards() -> None:
    assert fields_of({"instruction": "\ud83d x", "output": "\ud83d"}) == ("? x", "", "?")


def test_a_few_giants_do_not_flatten_a_histogram() -> None:
    import numpy as np

    assert histogram_top(np.array([10] * 9 + [55_000])) == 64
    assert histogram_top(np.arange(1, 1001)) == 990


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0"), (1, "100"), (0.5, "50"), (0.1234, "12.3"), (0.0001, "<0.1"), (0.9999, ">99.9"), (0.999, "99.9")],
)
def test_a_percentage_is_none_or_all_only_where_it_is(share: float, text: str) -> None:
    assert percent(share) == f"{text}\u00a0%"


def test_the_account_of_a_folder(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        regen_json=RECORDS[:2],
        rejected_jsonl=[{"reason": "too_similar", "score": 0.75}, {"reason": "too_short"}],
        metrics_json={
            "kept": 2,
            "rejected": {"too_short": 1, "too_similar": 4, "blank": 0},
            "errors": {"timeout": 1, "rate_limit": 3},
            "tokens": {"prompt": 900, "completion": 100},
            "requests": 5,
            "cost": {"total": 0.5},
            "seconds": 90,
        },
        run_json={"stage": "generate", "data_file": "regen.json", "settings": {"similarity_threshold": 0.7}},
    )
    source = read_source(str(path))
    account = account_of(source)
    assert source.stage == "generate"
    assert not source.unfinished
    assert account.outcomes == [("kept", 2), ("too_similar", 4), ("too_short", 1)]
    assert account.failures == [("rate_limit", 3), ("timeout", 1)]
    assert (account.entries, account.tokens, account.cost, account.threshold) == (7, 1000, 0.5, 0.7)
    assert account.rejected_scores == [0.75]
    rows = dict(account.rows())
    assert rows["cost of 1,000 kept records"] == "$250.00"
    assert rows["tokens a kept record"] == "500"
    assert rows["time"] == "1 min 30 s"
    assert "requests that never succeeded" not in rows
    assert "cost" in rows


def test_a_cost_that_is_a_bound_is_called_one() -> None:
    metrics = Metrics.model_validate({"kept": 1, "cost": {"total": 2.0, "uncertain_tokens": 1500}})
    rows = dict(account_of(Source("x", RECORDS, metrics=metrics)).rows())
    assert rows["cost at most"] == "$2.00"
    assert "cost" not in rows
    assert rows["further tokens at most, not counted by any answer"] == "1,500"


def test_an_account_without_metrics_counts_the_rejected_file(tmp_path: Path) -> None:
    path = folder(tmp_path, kept_jsonl=RECORDS[:2], rejected_jsonl=[{"reason": "too_similar"}] * 3)
    assert account_of(read_source(str(path))).outcomes == [("kept", 2), ("too_similar", 3)]


@pytest.mark.parametrize(("dollars", "text"), [(0, "$0.00"), (0.0123, "$0.0123"), (1, "$1.00"), (1234.5, "$1,234.50")])
def test_an_amount_has_the_digits_that_it_needs(dollars: float, text: str) -> None:
    assert Account.money(dollars) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.4, "59.4 s"), (90, "1 min 30 s"), (3600, "1 h 0 min"), (7390, "2 h 3 min")]
)
def test_a_time_in_words(seconds: float, text: str) -> None:
    assert dict(Account(seconds=seconds).rows())["time"] == text


def test_equal_counts_stand_in_the_order_of_their_names() -> None:
    metrics = Metrics.model_validate({"errors": {"c": 1, "b": 1, "a": 2, "none": 0}})
    assert account_of(Source("x", [], metrics=metrics)).failures == [("a", 2), ("b", 1), ("c", 1)]


def test_the_chart_of_similarities_says_what_they_compare() -> None:
    import numpy as np

    (axes,) = similarity_histogram(np.array([0.2]), [0.9], 0.7).axes
    assert axes.get_xlabel() == "highest ROUGE-L with any earlier instruction"


def test_what_metrics_do_not_say_is_left_out() -> None:
    assert account_of(Source("x", RECORDS)) == Account()
    metrics = Metrics.model_validate({"cost": {"total": None}, "tokens": None, "seconds": None, "more": [1]})
    assert account_of(Source("x", RECORDS, metrics=metrics)) == Account()


def test_a_cost_may_be_a_number(tmp_path: Path) -> None:
    source = read_source(str(folder(tmp_path, regen_json=RECORDS[:1], metrics_json={"cost": 3})))
    assert account_of(source).cost == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.json", '{"rejected": {"x": "many"}}', "'rejected.x' must be a whole number, not 'many'"),
        ("metrics.json", '{"rejected": {"x": -1}}', "'rejected.x' must be greater than or equal to 0, not -1"),
        ("metrics.json", '{"rejected": [1]}', "'rejected' must be an object, not [1]"),
        ("metrics.json", '{"kept": NaN}', "'kept' must be a whole number, not nan"),
        ("metrics.json", '{"kept": true}', "'kept' must be a whole number, not True"),
        ("metrics.json", '{"kept": 1e400}', "'kept' must be a whole number, not inf"),
        ("metrics.json", '{"errors": {"x": null}}', "'errors.x' must be a whole number, not None"),
        ("metrics.json", '{"tokens": 3}', "'tokens' must be an object, not 3"),
        ("metrics.json", '{"tokens": {"prompt": "x"}}', "'tokens.prompt' must be a whole number, not 'x'"),
        ("metrics.json", '{"cost": {"total": NaN}}', "'cost.total' must be "),
        ("metrics.json", '{"cost": {"total": ' + "9" * 400 + "}}", "'cost.total' must be "),
        ("metrics.json", '{"cost": true}', "'cost' must be an object, not True"),
        ("metrics.json", '{"seconds": "long"}', "'seconds' must be a valid number, not 'long'"),
        ("run.json", '{"inputs": 5}', "'inputs' must be a list of objects, not 5"),
        ("run.json", '{"inputs": ["x"]}', "'inputs' must be a list of objects, not ['x']"),
        ("run.json", '{"data_file": 5}', "'data_file' must be a text, not int"),
        (
            "run.json",
            '{"settings": {"similarity_threshold": NaN}}',
            "'settings.similarity_threshold' must be a number from 0 to 1, not nan",
        ),
        ("run.json", '{"settings": {"threshold": "x"}}', "'settings.threshold' must be a number from 0 to 1"),
        ("rejected.jsonl", '{"reason": "too_similar", "score": NaN}\n', "its 'score' must be a number from 0 to 1"),
        ("rejected.jsonl", '{"reason": "too_similar", "score": "x"}\n', "its 'score' must be a number from 0 to 1"),
        ("rejected.jsonl", "[" * 100_000 + "\n", "line 1: no rejected record"),
        ("rejected.jsonl", '{"score": 1}\n', "line 1: no rejected record (it has no 'reason')"),
        ("rejected.jsonl", "5\n", "line 1: no rejected record"),
    ],
)
def test_a_malformed_field_is_named_in_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder(tmp_path, regen_json=RECORDS[:1])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read_source(str(tmp_path))
    assert said in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_a_run_at_work_is_told_and_its_half_line_skipped(tmp_path: Path) -> None:
    folder(tmp_path, regen_json=RECORDS[:1], metrics_json={"kept": 1}, rejected_jsonl=[{"reason": "too_short"}])
    with (tmp_path / "rejected.jsonl").open("a") as file:
        file.write('{"reason": "too_')
    source = read_source(str(tmp_path))
    assert source.unfinished
    assert source.rejected == {"too_short": 1}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.json", "{", "metrics.json: not valid JSON"),
        ("metrics.json", "[]", "metrics.json: must hold a JSON object"),
        ("rejected.jsonl", "{}\n{}\n", "rejected.jsonl, line 1: no rejected record"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder(tmp_path, regen_json=RECORDS[:1])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_source(str(tmp_path))
