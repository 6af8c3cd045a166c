"""Charts of a set of records: lengths, coverage, similarities, outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from alpaca_ray.report.figures import ACCENT, INK, MUTED, SOFT
from alpaca_ray.report.measure import Measures, coverage_rows

_SIZE = (4.1, 2.5)  # inches: on a phone's width the text still reads
_BINS = 36


def length_histogram(lengths: np.ndarray, unit: str) -> Any:
    """Return a figure of how many texts (at least one) have which length; the last bar holds the longest ones too."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = _axes()
    top = histogram_top(lengths)
    width = max(1, round(top / _BINS))
    edges = np.arange(0.5, top + width + 1, width)  # a bar stands on the lengths that it counts
    counts, _ = np.histogram(np.minimum(lengths, edges[-1] - 0.25), edges)
    axes.bar(edges[:-1], counts, width=width * 0.9, align="edge", color=MUTED)
    median = float(np.median(lengths))
    axes.axvline(median, color=ACCENT, linewidth=1.4)
    _note(axes, median, f"median {median:,.0f}", right=median < edges[-1] * 0.6)
    axes.set_xlim(0, edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(unit)
    axes.set_ylabel("texts")
    return figure


def histogram_top(lengths: np.ndarray) -> int:
    """Return the length at which a histogram ends: the 99th percentile, or less where a few are out of all measure."""
    usual = 6 * float(np.quantile(lengths, 0.75)) + 4
    return int(max(min(float(np.quantile(lengths, 0.99)), usual), 4))


def coverage_curve(measures: Measures) -> Any:
    """Return a figure of the share of examples that a maximum length covers whole."""
    figure, axes = _axes()
    rows = coverage_rows(measures)
    lengths = np.unique(np.geomspace(32, rows[-1][0], 240).astype(int))
    axes.plot(lengths, [100 * measures.covered(length) for length in lengths], color=MUTED, linewidth=1.8)
    axes.set_xscale("log", base=2)
    named = -1.0
    place: dict[str, Any] = {"textcoords": "offset points", "xytext": (-3, 5), "ha": "right", "color": INK}
    for length, share in rows:  # labels above and left of the points: the curve comes from below
        axes.plot([length], [100 * share], marker="o", markersize=5, color=ACCENT)
        if share - named >= 0.01 or (share == 1 and named < 0.995):
            axes.annotate(percent(share), (length, 100 * share), fontsize=8.5, **place)
            named = share
    ticks = [length for length, _ in rows]
    axes.set_xticks(ticks, [f"{tick // 1024}K" if tick >= 1024 else str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlabel(f"maximum length ({measures.ruler.unit})")
    axes.set_ylabel("% of examples whole")
    return figure


def similarity_histogram(kept: np.ndarray, rejected: Sequence[float], threshold: float | None) -> Any:
    """Return a figure of each record's highest ROUGE-L with any that came before, kept and rejected."""
    figure, axes = _axes()
    edges = np.linspace(0, 1, 41)
    counts, _ = np.histogram(kept, edges)
    dropped, _ = np.histogram(np.asarray(rejected, dtype=float), edges)
    axes.bar(edges[:-1], counts, width=0.0225, align="edge", color=MUTED, label="kept")
    if len(rejected):
        axes.bar(edges[:-1], dropped, bottom=counts, width=0.0225, align="edge", color=ACCENT, label="too similar")
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    if threshold is not None:
        axes.axvline(threshold, color=SOFT, linewidth=1.2, linestyle="--")
        _note(axes, threshold, f"threshold {threshold:g}", right=threshold < 0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel("highest ROUGE-L with any earlier instruction")
    axes.set_ylabel("records")
    return figure


def bars(counts: Sequence[tuple[str, int]], *, good: str = "") -> Any:
    """Return a figure of horizontal bars, one a name, with its count and share behind it; ``good`` is set apart."""
    figure, axes = _axes(height=0.5 + 0.27 * max(len(counts), 1))
    total = sum(count for _, count in counts) or 1
    names = [name if len(name) <= 26 else name[:25] + "…" for name, _ in counts]
    places = list(range(len(counts)))[::-1]
    colours = [MUTED if name == good else ACCENT for name, _ in counts]
    axes.barh(places, [count for _, count in counts], color=colours, height=0.72)
    widest = max([count for _, count in counts] or [1])
    for place, (_, count) in zip(places, counts, strict=True):
        axes.text(count + widest * 0.015, place, f"{count:,} · {percent(count / total)}", va="center", fontsize=9)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, widest * 1.42)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def percent(share: float) -> str:
    """Return a share as a percentage that is 0 or 100 only where it is exactly so."""
    if 0 < share < 0.001:
        return "<0.1\u00a0%"
    if 0.999 < share < 1:
        return ">99.9\u00a0%"
    return f"{100 * share:.1f}".removesuffix(".0") + "\u00a0%"


def _axes(*, height: float = _SIZE[1]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(_SIZE[0], height))
    axes = figure.add_subplot()
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


def _note(axes: Any, x: float, text: str, *, right: bool) -> None:
    """Write beside a vertical line, at the top."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.12)
    place: dict[str, Any] = {"textcoords": "offset points", "xytext": (4 if right else -4, 0), "va": "top"}
    axes.annotate(text, (x, high * 1.1), ha="left" if right else "right", fontsize=9, color=INK, **place)
