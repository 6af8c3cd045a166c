"""Plots of a training run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
