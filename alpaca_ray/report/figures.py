"""From a matplotlib figure to SVG inside a page or to a PNG file; no display is needed."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

INK = "#1c2430"
SOFT = "#5b6675"
LINE = "#dfe3e9"
ACCENT = "#c2410c"
MUTED = "#8a94a6"

_RC = {
    "svg.hashsalt": "alpaca_ray",  # equal input, equal bytes
    "svg.fonttype": "none",  # text stays text: the browser finds a font for any script
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": MUTED,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a dollar sign in somebody's data is a dollar sign
}
# What a page may show on a dark ground follows its colour scheme; the accents read well on both.
_THEMED = {INK: "var(--ink)", SOFT: "var(--soft)"}


def to_svg(draw: Callable[[], Any], label: str) -> str:
    """Return a figure as an SVG element that fills its container's width.

    Args:
        draw: returns the figure; called with our style in force.
        label: what the figure shows, for readers that do not see it.
    """
    svg = _save(draw, "svg").decode("utf-8")
    svg = svg[svg.index("<svg") :]  # the XML prologue may not stand inside an HTML page
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def to_png(draw: Callable[[], Any]) -> bytes:
    """Return a figure as the bytes of a PNG file on a white ground."""
    return _save(draw, "png")


def _save(draw: Callable[[], Any], kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a PNG shows a box; the page has the text
        options: dict[str, Any] = {"metadata": {"Date": None}, "transparent": True} if kind == "svg" else {"dpi": 160}
        draw().savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.06, **options)
    return buffer.getvalue()
