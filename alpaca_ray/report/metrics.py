"""``metrics.json`` of a stage, as far as a report reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from alpaca_ray.errors import DataError
from alpaca_ray.manifest import read_json_object

FILE_NAME = "metrics.json"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, lt=1e15)]


class Tokens(BaseModel):
    """Tokens that the teacher read and wrote."""

    prompt: Count | None = None
    completion: Count | None = None

    model_config = ConfigDict(strict=True)


class Cost(BaseModel):
    """``total`` in US dollars; ``uncertain_tokens`` are in it at their most, since no answer counted them."""

    total: Amount | None = None
    uncertain_tokens: Count = 0

    model_config = ConfigDict(strict=True)


def _as_cost(value: Any) -> Any:
    """Take the older form, in which the cost is a number."""
    return {"total": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class Metrics(BaseModel):
    """Figures of a run; what ``metrics.json`` does not say is None or empty, and what else it says is left out.

    ``rejected`` counts entries by reason, ``errors`` failed attempts by kind, ``seconds`` is wall-clock time.
    """

    kept: Count | None = None
    rejected: dict[str, Count] | None = None
    errors: dict[str, Count] | None = None
    requests: Count | None = None
    failed: Count | None = None
    tokens: Tokens | None = None
    cost: Annotated[Cost | None, BeforeValidator(_as_cost)] = None
    seconds: Amount | None = None

    model_config = ConfigDict(strict=True)


def read_metrics(folder: Path) -> Metrics | None:
    """Return a folder's metrics, or None where it has none.

    Raises:
        DataError: the file is malformed; the text names it and the field.
    """
    content = read_json_object(folder / FILE_NAME)
    if not content:
        return None
    try:
        return Metrics.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        words = str(first["msg"]).removeprefix("Input should be ").replace("a valid integer", "a whole number")
        if first["type"] in ("model_type", "dict_type"):
            words = "an object"
        raise DataError(f"{folder / FILE_NAME}: {field!r} must be {words}, not {first['input']!r:.40}") from error
