"""The page templates of this package, with every value escaped and no name left undefined."""

from __future__ import annotations

from typing import Any


def render_template(name: str, **values: Any) -> str:
    """Return a template of this folder, filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("alpaca_ray", "report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = environment.get_template(name).render(**values)
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair in a record is no valid page
