"""The sunburst of root verbs (inner ring) and their direct objects (outer), as self-instruct and Alpaca drew it."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

_DARK = "#22262e"  # labels stand on light wedges, also on a dark page

Top = Sequence[tuple[str, Sequence[tuple[str, int]]]]


def sunburst(top: Top, *, compact: bool = False) -> Any:
    """Return the figure; a verb's angle is the sum of its objects' counts.

    Args:
        top: verbs with their objects and counts, as ``VerbCounts.top`` returns them.
        compact: for narrow screens: smaller, and only verbs are named.
    """
    from matplotlib.figure import Figure

    inches = 3.6 if compact else 6.6
    figure = Figure(figsize=(inches, inches))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(-1.01, 1.01)
    axes.set_ylim(-1.01, 1.01)
    points = inches * 72 / 2.02  # one unit of the axes
    rings = (0.24, 0.80, 1.0) if compact else (0.20, 0.58, 1.0)
    total = sum(count for _, objects in top for _, count in objects) or 1
    start = 0.0
    for number, (verb, objects) in enumerate(top):
        hue = (0.03 + number * 0.618034) % 1  # by the golden ratio: neighbours differ
        angle = 360 * sum(count for _, count in objects) / total
        _wedge(axes, start, angle, rings[0], rings[1], _colour(hue, 0.74), verb, 9.5, points)
        inner = start
        for noun, count in objects:
            part = 360 * count / total
            _wedge(axes, inner, part, rings[1], rings[2], _colour(hue, 0.86), "" if compact else noun, 8.5, points)
            inner += part
        start += angle
    return figure


def _colour(hue: float, lightness: float) -> tuple[float, float, float]:
    return colorsys.hls_to_rgb(hue, lightness, 0.55)


def _wedge(
    axes: Any,
    start: float,
    angle: float,
    inner: float,
    outer: float,
    colour: tuple[float, float, float],
    label: str,
    size: float,
    points: float,
) -> None:
    """Draw one wedge, clockwise from the top, with its label along the radius where it fits."""
    from matplotlib.patches import Wedge

    wedge: dict[str, Any] = {"width": outer - inner, "facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
    axes.add_patch(Wedge((0, 0), outer, 90 - start - angle, 90 - start, **wedge))
    radius = (inner + outer) / 2
    room = 2 * math.pi * (inner + 0.2 * (outer - inner)) * min(angle, 170) / 360 * points  # the label's line height
    if not label or room < size * 0.9:
        return
    fits = int((outer - inner) * points / (size * 0.62))
    text = label if len(label) <= fits else label[: max(fits - 1, 1)] + "…"
    middle = math.radians(90 - start - angle / 2)
    turn = math.degrees(middle) % 360
    axes.text(
        radius * math.cos(middle),
        radius * math.sin(middle),
        text,
        rotation=turn - 180 if 90 < turn < 270 else turn,
        rotation_mode="anchor",
        ha="center",
        va="center",
        fontsize=size,
        color=_DARK,
    )
