"""Rows of a dataset on a hub, streamed: which split is read, and one line for whatever goes wrong on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alpaca_ray.errors import DataError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}")
_TRAINING = ("train",)
_EVALUATION = ("test", "validation")


def is_hub_id(text: str) -> bool:
    """Whether a text may be a dataset id: ``owner/name``, ``owner/name:split`` or ``owner/name:config:split``."""
    return bool(_HUB_ID.fullmatch(text))


class StreamBrokenError(DataError):
    """A dataset or a file was there, and could not be read to its end; it may be another time."""


class HubRows:
    """One split of a dataset. It is opened at once, and read from its beginning each time it is iterated over."""

    def __init__(self, source: str, *, evaluation: bool = False) -> None:
        """Open a split: the one that the id names, else ``train``.

        Args:
            source: dataset id, see ``is_hub_id``.
            evaluation: what is read is an evaluation set: where no split is named, ``test`` is taken if there is one,
                else ``validation``.

        Raises:
            DataError: the dataset cannot be read, or has no such split.
        """
        self.source = source
        name, *rest = source.split(":")
        wanted = rest[-1] if rest else None
        try:
            import datasets

            splits = datasets.load_dataset(name, *rest[:-1], streaming=True)
        except Exception as error:
            raise DataError(
                f"{source}: no such file, and not readable as a hub dataset (owner/name, owner/name:split or "
                f"owner/name:config:split): {error}"
            ) from error
        if wanted is not None and wanted not in splits:
            raise DataError(f"{source}: the dataset has no split '{wanted}', but {', '.join(splits)}")
        preferred = [wanted] if wanted else [*(_EVALUATION if evaluation else _TRAINING), *splits]
        self.split: str = next(split for split in preferred if split in splits)
        self._rows = splits[self.split]

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows.

        Raises:
            StreamBrokenError: the stream broke off.
        """
        count = 0
        try:
            for row in self._rows:
                yield row
                count += 1
        except Exception as error:  # as above
            raise StreamBrokenError(f"{self.source}: cannot be read on after {count:,} records: {error}") from error
