"""The report page: self-contained, escaped, and showing what it was given."""

from __future__ import annotations

import re
from typing import Any

from alpaca_ray.report.page import LoopReport, render
from alpaca_ray.report.plots import EVAL_COLOUR, TRAIN_COLOUR, loss_curve

METRICS: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 2.5},
    {"step": 1, "loss": 2.4},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 1.9},
]


def report(**changes: Any) -> LoopReport:
    values: dict[str, Any] = {
        "title": "A loop",
        "note": "n",
        "cards": [("12", "records kept")],
        "metrics": METRICS,
        "outcomes": {"too_similar": 3, "kept": 12},
        "records": [{"instruction": "Use <b> & co", "input": "", "output": "<script>alert(1)</script>"}],
        "comparisons": [("Why?", [("base", "Because."), ("adapter", "So.")])],
    }
    return LoopReport(**{**values, **changes})


def test_the_curve_draws_both_losses_and_labels_first_and_last() -> None:
    svg = loss_curve(METRICS)
    assert svg.startswith("<svg")
    assert TRAIN_COLOUR in svg
    assert EVAL_COLOUR in svg
    assert EVAL_COLOUR not in loss_curve([{"step": 1, "loss": 2.4}, {"step": 2, "loss": 2.0}])


def test_the_same_metrics_give_the_same_bytes() -> None:
    assert loss_curve(METRICS) == loss_curve(METRICS)


def test_the_page_is_self_contained_and_escaped() -> None:
    page = render(report())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Use &lt;b&gt; &amp; co" in page
    assert not re.search(r"(src|href)=\"https?://", page.replace('xlink:href="#', ""))


def test_kept_comes_first_and_bars_are_in_proportion() -> None:
    page = render(report())
    assert page.index(">kept<") < page.index(">too_similar<")
    assert "width: 100.0%" in page
    assert "width: 25.0%" in page


def test_an_empty_loop_still_renders() -> None:
    assert "<svg" in render(report(metrics=[], outcomes={}, records=[], comparisons=[]))
