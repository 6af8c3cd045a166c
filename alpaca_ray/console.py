"""What a job prints: plain lines that read well in a terminal and in a log."""

from __future__ import annotations

from collections.abc import Sequence

from alpaca_ray.settings.base import Settings


def say(line: str = "") -> None:
    """Print a line at once, also where output is a pipe that others read."""
    print(line, flush=True)


def show_settings(title: str, settings: Settings) -> None:
    """Print the settings that were given or that a dialect brought, each with where it came from."""
    say(title)
    for line in settings.describe():
        say(line)
    say("  (everything else at its default: see --help)")


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Return rows as aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in [*([header] if header else []), *rows]]
    if not cells:
        return ""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    numeric = [all(isinstance(row[column], int | float) for row in rows) for column in range(len(widths))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def as_bytes(size: float) -> str:
    """Return a size as people read it, in powers of ten: ``1.24 GB``."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB" if size < 999.5 else f"{size:,.0f} GB"
