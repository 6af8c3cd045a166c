"""The records of a run: read, and split into what is learnt and what is held out. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

from alpaca_ray.errors import SettingsError
from alpaca_ray.records import Record, read_records

HELDOUT_FILE = "heldout_ids.json"


def read_all(sources: Sequence[str]) -> list[Record]:
    """Read the records of every source, in order.

    Raises:
        DataError: one of them is missing, empty or malformed.
    """
    return [record for source in sources for record in read_records(source)]


def split(records: Sequence[Record], val_set_size: float, *, seed: int) -> tuple[list[Record], list[Record]]:
    """Return the records to learn and those held out, each in their original order.

    The choice is seeded. Records that share an id (copies of one record) stay on one side.

    Args:
        val_set_size: a count, or a share below 1 (at least one record).

    Raises:
        SettingsError: nothing would be left to learn.
    """
    if not val_set_size:
        return list(records), []
    count = int(val_set_size) if val_set_size >= 1 else max(1, round(len(records) * val_set_size))
    if count >= len(records) and val_set_size < 1:
        raise SettingsError(
            f"{len(records)} record cannot be split into what is learnt and what is held out for the validation loss: "
            "give more records, or --val_set_size 0"
        )
    if count >= len(records):
        raise SettingsError(
            f"--val_set_size {count} leaves nothing to learn of {len(records)} records: give a smaller one "
            "(a share such as 0.1, or 0 for none)"
        )
    ids = list(dict.fromkeys(record["id"] for record in records))
    random.Random(seed).shuffle(ids)
    sizes: dict[str, int] = {}
    for record in records:
        sizes[record["id"]] = sizes.get(record["id"], 0) + 1
    chosen: set[str] = set()
    held = 0
    for identity in ids:
        if held + sizes[identity] <= count:
            chosen.add(identity)
            held += sizes[identity]
        if held == count:
            break
    kept = [record for record in records if record["id"] not in chosen]
    return kept, [record for record in records if record["id"] in chosen]
