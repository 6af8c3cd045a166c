"""Plots, drawn with matplotlib's file back end: no display is needed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.storage import write_atomic

TRAIN_COLOUR = "#8a94a6"
EVAL_COLOUR = "#c2410c"


def loss_curve(rows: Iterable[Mapping[str, Any]], *, title: str = "") -> str:
    """Return an SVG of training and validation loss over optimiser steps.

    Args:
        rows: lines of ``metrics.jsonl``: each has ``step`` and one or both of ``loss`` and ``eval_loss``.
    """
    svg = _loss_curve(rows, title, "svg").decode()
    return svg[svg.index("<svg") :]  # the XML prologue may not stand inside an HTML page


def save_loss_curve(rows: Iterable[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Write the loss curve as a PNG or SVG file, by the path's suffix."""
    write_atomic(path, _loss_curve(rows, title, path.suffix.removeprefix(".")))


def _loss_curve(rows: Iterable[Mapping[str, Any]], title: str, kind: str) -> bytes:
    from matplotlib import rc_context

    rows = list(rows)
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    validation = [(row["step"], row["eval_loss"]) for row in rows if row.get("eval_loss") is not None]
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "alpaca_ray", "font.family": "DejaVu Sans"}):  # equal input, equal bytes
        figure = _draw(train, validation, title)
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, bbox_inches="tight", dpi=120, metadata=metadata)
    return buffer.getvalue()


def _draw(train: list[tuple[int, float]], validation: list[tuple[int, float]], title: str) -> Any:
    from matplotlib.figure import Figure  # no pyplot: it would keep every figure alive and look for a display

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
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    if train or validation:
        axes.legend(frameon=False, loc="upper right")
    return figure
