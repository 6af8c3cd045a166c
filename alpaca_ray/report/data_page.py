"""The page of a set of records: one HTML file that loads nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from alpaca_ray.records import Record
from alpaca_ray.report import charts
from alpaca_ray.report.account import Account
from alpaca_ray.report.charts import percent
from alpaca_ray.report.figures import to_svg
from alpaca_ray.report.measure import Measures, fields_of
from alpaca_ray.report.sunburst import sunburst
from alpaca_ray.report.templates import render_template
from alpaca_ray.report.verbs import AGREEMENT, VerbCounts

_SHOWN_CHARACTERS = 700


@dataclass(frozen=True)
class Chart:
    """One chart: the file name of its PNG (without suffix), its title, how to draw it, and a note for below it."""

    name: str
    title: str
    draw: Callable[[], Any]
    note: str = ""


@dataclass(frozen=True)
class DataReport:
    """What the page shows. ``verbs`` is None where parsing was left out; ``records`` are the ones to show."""

    title: str
    note: str
    measures: Measures
    verbs: VerbCounts | None
    account: Account
    records: Sequence[Record]
    footer: str


def all_charts(report: DataReport) -> list[Chart]:
    """Return every chart that the data allow, in the page's order."""
    found = []
    if report.verbs and report.verbs.pairs:
        found.append(Chart("verbs", "Root verbs and their objects", partial(sunburst, report.verbs.top())))
    return found + _length_charts(report.measures) + _similarity_charts(report) + _account_charts(report.account)


def render_data_page(report: DataReport) -> str:
    """Return the page. It loads nothing: styles and charts stand inside it, and every text is escaped."""
    measures, account = report.measures, report.account
    sections = [
        {
            "id": "lengths",
            "title": "Lengths",
            "note": f"In {measures.ruler.described}. An example is prompt and output together, in Stanford's training "
            "template: what a maximum length cuts off is lost to training.",
            "charts": _drawn(_length_charts(measures)),
            "rows": [],
        },
        {
            "id": "account",
            "title": "What was kept, and what it cost",
            "note": "",
            "charts": _drawn(_similarity_charts(report) + _account_charts(account)),
            "table": "The run's account",
            "rows": account.rows(),
        },
    ]
    return render_template(
        "data.html.jinja",
        title=report.title,
        note=report.note,
        cards=_cards(report),
        verbs=_verbs(report.verbs) if report.verbs else None,
        sections=[section for section in sections if section["charts"] or section["rows"]],
        records=[_shown(record) for record in report.records],
        records_note=f"{len(report.records)} of {measures.records:,}, drawn at random; long texts are cut.",
        footer=report.footer,
    )


def sample_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return a seeded sample, in the data's order."""
    chosen = random.Random(seed).sample(range(len(records)), min(count, len(records)))
    return [records[index] for index in sorted(chosen)]


def _cards(report: DataReport) -> list[tuple[str, str]]:
    measures, account = report.measures, report.account
    total = max(measures.records, 1)
    cards = [(f"{measures.records:,}", "records" if measures.records != 1 else "record")]
    if account.entries:
        cards.append((percent(account.kept / account.entries), f"kept of {account.entries:,} entries"))
    if account.cost is not None:
        cards.append((account.money(account.cost), f"teacher's {account.cost_label}"))
    if account.tokens:
        cards.append((_short(account.tokens), "teacher tokens"))
    cards += [
        (
            f"{np.median(measures.output):,.0f}",
            f"{measures.ruler.unit} in the median output",
        ),
        (percent(measures.covered(512)), f"of examples fit into 512 {measures.ruler.unit}"),
        (percent(measures.with_input / total), "have an input"),
    ]
    if report.verbs and report.verbs.parsed:
        cards.append((f"{len(report.verbs.verbs):,}", "different root verbs"))
    if measures.repeated:
        cards.append((f"{measures.repeated:,}", "repeat another record exactly"))
    if measures.without_output:
        cards.append((f"{measures.without_output:,}", "have no output"))
    return cards


def _verbs(counts: VerbCounts) -> dict[str, Any]:
    top = counts.top()
    shown = sum(count for _, objects in top for _, count in objects)
    parsed = max(counts.parsed, 1)
    whole = f"all {counts.of:,}" if counts.parsed == counts.of else f"a random {counts.parsed:,} of {counts.of:,}"
    with_object = sum(counts.pairs.values())
    note = (
        f"Root verb and direct object of each instruction's first sentence, in {whole} instructions: "
        f"{percent(sum(counts.verbs.values()) / parsed)} have a root verb, {percent(with_object / parsed)} an object "
        f"too. Shown: the {f'{len(top)} ' if len(top) > 1 else ''}most common, each with up to 4 objects, "
        f"{percent(shown / parsed)} of the instructions. The parser reads English only; with the "
        f"labels of {AGREEMENT.labelled} seed tasks it agrees "
        f"on {percent(AGREEMENT.verb)} of verbs and {percent(AGREEMENT.object)} of objects."
    )
    totals = {verb: sum(n for (other, _), n in counts.pairs.items() if other == verb) for verb, _ in top}
    rows = [
        (verb, f"{totals[verb]:,}", ", ".join(f"{noun}\u00a0({count:,})" for noun, count in objects))
        for verb, objects in top
    ]
    if not top:
        return {"note": note, "rows": []}
    label = "sunburst of root verbs and their direct objects; the table below has the same figures"
    svgs = {name: to_svg(partial(sunburst, top, compact=name == "compact"), label) for name in ("svg", "compact")}
    return {"note": note, "rows": rows, **svgs}


def _length_charts(measures: Measures) -> list[Chart]:
    unit = measures.ruler.unit
    if not measures.records:
        return []
    found = []
    for name in ("instruction", "input", "output"):
        lengths = getattr(measures, name)
        present = lengths[lengths > 0]
        if not len(present):
            continue
        note = f"{len(present):,} text{'s' if len(present) != 1 else ''}; longest {present.max():,} {unit}."
        longer = int((present > charts.histogram_top(present)).sum())
        if longer:
            note += f" The last bar holds the {f'{longer:,} longest' if longer > 1 else 'longest'}."
        draw = partial(charts.length_histogram, present, unit)
        found.append(Chart(f"length_{name}", f"{name.capitalize()} length", draw, note))
    note = f"Longest example: {measures.example.max():,} {unit}."
    draw = partial(charts.coverage_curve, measures)
    return [*found, Chart("coverage", "Coverage by maximum length", draw, note)]


def _similarity_charts(report: DataReport) -> list[Chart]:
    similarities, account = report.measures.similarities, report.account
    if not len(similarities) and not account.rejected_scores:
        return []
    draw = partial(charts.similarity_histogram, similarities, account.rejected_scores, account.threshold)
    note = "To the nearest instruction that was there before."
    if len(similarities):
        note += f" Median of what was kept: {np.median(similarities):.2f}."
    return [Chart("similarity", "Highest similarity", draw, note)]


def _account_charts(account: Account) -> list[Chart]:
    found = []
    if account.outcomes:
        draw = partial(charts.bars, account.outcomes, good="kept")
        found.append(Chart("rejected", "Kept, and rejected by reason", draw))
    if account.failures:
        draw = partial(charts.bars, account.failures)
        note = "Attempts, those that were repeated included."
        found.append(Chart("failures", "Failed attempts by kind", draw, note))
    return found


def _drawn(found: Sequence[Chart]) -> list[Mapping[str, str]]:
    return [{"title": chart.title, "svg": to_svg(chart.draw, chart.title), "note": chart.note} for chart in found]


def _shown(record: Record) -> dict[str, str]:
    texts = [
        text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS].rstrip() + " …"
        for text in fields_of(record)
    ]
    return dict(zip(("instruction", "input", "output"), texts, strict=True))


def _short(number: int) -> str:
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (10_000, "K")):
        if number >= limit:
            return f"{number / (1000 if unit == 'K' else limit):,.1f} {unit}"
    return f"{number:,}"
