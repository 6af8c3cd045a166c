"""Plots of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.report.figures import ACCENT, MUTED, to_png, to_svg
from alpaca_ray.storage import write_atomic

TRAIN_COLOUR = MUTED
EVAL_COLOUR = ACCENT


def loss_curve(rows: Iterable[Mapping[str, Any]], *, title: str = "") -> str:
    """Return an SVG of training and validation loss over optimiser steps.

    Args:
        rows: lines of ``metrics.jsonl``: each has ``step`` and one or both of ``loss`` and ``eval_loss``.
    """
    known = list(rows)
    return to_svg(lambda: _draw(known, title), "training and validation loss over optimiser steps")


def save_loss_curve(rows: Iterable[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Write the loss curve as a PNG file."""
    known = list(rows)
    write_atomic(path, to_png(lambda: _draw(known, title)))


def save_length_histogram(counts: Sequence[tuple[int, int]], limit: int, path: Path) -> None:
    """Write a histogram of the samples' lengths as a PNG file, with the share that reaches the limit.

    Args:
        counts: (tokens, samples of that length).
        limit: tokens at which samples were cut.
    """
    write_atomic(path, to_png(lambda: _draw_lengths(counts, limit)))


def _draw_lengths(counts: Sequence[tuple[int, int]], limit: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.2))
    axes = figure.add_subplot()
    lengths, weights = zip(*counts, strict=True) if counts else ((), ())
    total = sum(weights) or 1
    longest = max(lengths, default=1)
    bins = min(48, longest)
    axes.hist(lengths, bins=bins, range=(0.5, longest + 0.5), weights=weights, color=TRAIN_COLOUR, rwidth=0.9)
    share = sum(count for length, count in counts if length >= limit) / total
    if longest >= limit:
        axes.axvline(limit, color=EVAL_COLOUR, linewidth=1.6)
    mean = sum(length * count for length, count in counts) / total
    note = f"mean {mean:,.0f} tokens; {100 * share:.1f} % reach the limit of {limit:,}"
    axes.set_title(note, loc="left", fontsize=10)
    axes.set_xlabel("tokens a sample")
    axes.set_ylabel("samples")
    axes.margins(x=0.02)
    axes.grid(axis="y", alpha=0.25)
    return figure


def _draw(rows: list[Mapping[str, Any]], title: str) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it would keep every figure alive and look for a display

    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    validation = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    figure = Figure(figsize=(7.0, 3.2))
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color=TRAIN_COLOUR, linewidth=1.4, label="training")
    if validation:
        line: dict[str, Any] = {"color": EVAL_COLOUR, "linewidth": 1.8, "marker": "o", "markersize": 5}
        axes.plot(*zip(*validation, strict=True), label="validation", **line)
        for step, loss in sorted({validation[0], validation[-1]}):
            label: dict[str, Any] = {
                "textcoords": "offset points",
                "xytext": (0, 8),
                "ha": "center",
                "color": EVAL_COLOUR,
            }
            axes.annotate(f"{loss:.2f}", (step, loss), **label)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats a token)")
    axes.margins(x=0.06, y=0.18)
    axes.grid(axis="y", alpha=0.25)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    if train or validation:
        axes.legend(frameon=False, loc="upper right")
    return figure
