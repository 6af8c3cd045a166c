"""The licence that a card states."""

from __future__ import annotations

import re

_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def check_licence(name: str) -> None:
    """Check that a licence is named as a hub names licences.

    Raises:
        ValueError: it is not.
    """
    if not _ID.fullmatch(name):
        raise ValueError(
            f"--license {name!r}: must be a licence id in lower case, such as apache-2.0, cc-by-nc-4.0 or other"
        )
