"""What a report says in words: title, provenance, filters, headline figures."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_ray.report.account import Account, account_of
from alpaca_ray.report.card import Card
from alpaca_ray.report.charts import percent
from alpaca_ray.report.data_page import DataReport, render_data_page, sample_records
from alpaca_ray.report.describe import card_of, headline
from alpaca_ray.report.measure import choose_ruler, measure
from alpaca_ray.report.metrics import Metrics
from alpaca_ray.report.source import Source
from alpaca_ray.report.verbs import AGREEMENT, VerbCounts
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.report import ReportSettings

RECORDS = [{"id": "a", "instruction": "Name a river.", "input": "x", "output": "word " * 200}]
GENERATED: dict[str, Any] = {
    "stage": "generate",
    "inputs": [{"name": "/home/me/my_seeds.jsonl"}],
    "finished_at": "2026-03-04T05:06:07Z",
    "teacher": {"model_name": "a-teacher"},
    "settings": {"similarity_threshold": 0.7, "decontaminate": ["owner/evals", "/home/me/mmlu.jsonl", "./x"]},
    "versions": {"alpaca_ray": "0.1.0"},
    "revision": "abc",
}
NOT_FINISHED = "The run in this folder is not finished: the figures are those of now."


def settings(*arguments: str) -> ReportSettings:
    return parse_settings(ReportSettings, ["x.json", *arguments], description="")


def report_of(source: Source, account: Account | None = None) -> DataReport:
    measures = measure(source.records, choose_ruler("words"))
    return DataReport("A title", "A note.", measures, None, account or account_of(source), source.records, "")


def card(source: Source, *arguments: str) -> Card:
    return card_of(settings(*arguments), source, report_of(source), "plain", "data/train.jsonl", [])


@pytest.mark.parametrize(
    ("manifest", "flags", "title", "note"),
    [
        (
            GENERATED,
            [],
            "1 instruction record of x",
            "Generated with a-teacher from my_seeds.jsonl. The run finished on 2026-03-04.",
        ),
        (
            {**GENERATED, "complete": False, "teacher": {"model_name": "embedded"}},
            ["--title", "Rivers"],
            "Rivers",
            f"Generated with the embedded model (SmolLM2-135M-Instruct) from my_seeds.jsonl. {NOT_FINISHED}",
        ),
        ({"stage": "generate"}, [], "1 instruction record of x", "Generated from seed tasks."),
        (
            {"stage": "dedup", "settings": {"data_path": ["/a/b.jsonl", "seeds"]}},
            [],
            "1 instruction record of x",
            "What deduplication kept of b.jsonl, the seed tasks that alpaca_ray ships.",
        ),
        ({}, ["--teacher", "somebody"], "1 instruction record of x", "Read from x, written by somebody."),
        ({}, [], "1 instruction record of x", "Read from x."),
    ],
)
def test_title_and_note(manifest: dict[str, Any], flags: list[str], title: str, note: str) -> None:
    assert headline(settings(*flags), Source("x", RECORDS, manifest)) == (title, note)


def test_a_run_at_work_is_said_to_be() -> None:
    _, note = headline(settings(), Source("x", RECORDS, metrics=Metrics(kept=1)))
    assert note == f"Read from x. {NOT_FINISHED}"


def test_the_shipped_tasks_have_a_name_and_several_records_a_plural() -> None:
    title, _ = headline(settings(), Source("seeds", RECORDS * 2))
    assert title == "2 instruction records of the shipped seed tasks"


def test_the_card_of_a_generated_set() -> None:
    found = card(Source("x", RECORDS, GENERATED))
    facts = dict(found.facts)
    assert facts["seeds"] == "my_seeds.jsonl"
    assert "input" not in facts
    assert facts["made with"] == "alpaca_ray 0.1.0 (abc)"
    assert facts["with an input"] == "1"
    assert "without an output" not in facts
    assert dict(found.settings) == {"similarity_threshold": "0.7", "decontaminate": "owner/evals, mmlu.jsonl, x"}
    assert found.synthetic


def test_the_card_of_other_sets() -> None:
    dedup = card(Source("x", RECORDS * 2, {"stage": "dedup", "settings": {"data_path": "a/b/c.jsonl"}}))
    facts = dict(dedup.facts)
    assert (facts["input"], facts["exact repeats"]) == ("c.jsonl", "1")
    assert not dedup.synthetic
    assert card(Source("x", RECORDS), "--teacher", "somebody").synthetic


def test_headline_figures() -> None:
    account = Account(
        kept=1, outcomes=[("kept", 1), ("too_short", 3)], prompt_tokens=9_000, completion_tokens=999, cost=0.5
    )
    page = render_data_page(report_of(Source("x", RECORDS), account))
    for value, label in (
        ("25\u00a0%", "kept of 4 entries"),
        ("$0.5000", "teacher&#39;s cost"),
        ("9,999", "teacher tokens"),
        ("200", "words in the median output"),
        ("100\u00a0%", "of examples fit into 512 words"),
        ("100\u00a0%", "have an input"),
    ):
        assert f"<b>{value}</b><span>{label}</span>" in page
    for tokens, text in ((10_000, "10.0 K"), (1_000_000, "1.0 M"), (2_500_000_000, "2.5 B")):
        page = render_data_page(report_of(Source("x", RECORDS), Account(prompt_tokens=tokens)))
        assert f"<b>{text}</b><span>teacher tokens</span>" in page


def test_an_example_of_more_than_256_and_less_than_512_words_fits() -> None:
    records = [{"id": "a", "instruction": "Go on.", "output": "word " * 400}]
    page = render_data_page(report_of(Source("x", records)))
    assert "<b>100\u00a0%</b><span>of examples fit into 512 words</span>" in page


def test_the_page_says_how_far_its_parser_can_be_trusted() -> None:
    source = Source("x", RECORDS)
    report = DataReport("t", "n", report_of(source).measures, VerbCounts(1, 1), account_of(source), [], "")
    agreed = f"with the labels of {AGREEMENT.labelled} seed tasks it agrees on {percent(AGREEMENT.verb)} of verbs"
    assert agreed in render_data_page(report)


def test_long_texts_are_cut_and_say_so() -> None:
    page = render_data_page(report_of(Source("x", [{"id": "a", "instruction": "y" * 701, "output": "z" * 700}])))
    assert "y" * 700 + " …" in page
    assert "y" * 701 not in page
    assert "z" * 700 + "</div>" in page


def test_a_sample_is_seeded_and_in_the_order_of_the_data() -> None:
    records = [{"id": str(number)} for number in range(100)]
    numbers = [int(record["id"]) for record in sample_records(records, 10, 1)]
    assert len(set(numbers)) == 10
    assert numbers == sorted(numbers)
    assert numbers == [int(record["id"]) for record in sample_records(records, 10, 1)]
    assert sample_records(records, 10, 2) != sample_records(records, 10, 1)
    assert sample_records(records[:3], 10, 1) == records[:3]
