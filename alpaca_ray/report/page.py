"""The report of a whole loop: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_ray.report.plots import loss_curve
from alpaca_ray.report.templates import render_template


@dataclass(frozen=True)
class LoopReport:
    """What a page shows of one loop.

    ``outcomes`` maps what became of each entry (``kept``, or the reason of its rejection) to a count; ``comparisons``
    holds, a question each, the answer of every model.
    """

    title: str
    note: str
    cards: Sequence[tuple[str, str]]
    metrics: Sequence[Mapping[str, Any]]
    outcomes: Mapping[str, int]
    records: Sequence[Mapping[str, Any]]
    comparisons: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    footer: str = ""


def render(report: LoopReport) -> str:
    """Return the page. It loads nothing: styles and plots stand inside it, and every text is escaped."""
    outcomes = sorted(report.outcomes.items(), key=lambda entry: (entry[0] != "kept", -entry[1]))
    return render_template(
        "page.html.jinja",
        title=report.title,
        note=report.note,
        cards=report.cards,
        loss_svg=loss_curve(report.metrics),
        outcomes=outcomes,
        widest=max([count for _, count in outcomes] or [1]) or 1,
        records=report.records,
        comparisons=report.comparisons,
        footer=report.footer,
    )
