"""A full disk, or a used-up quota, as one line of ours: libraries report it by classes of their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from alpaca_ray.errors import AlpacaRayError, OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The system's words, and how torch's writer of archives says that not all bytes went out.
_WORDS = (*map(os.strerror, _FULL), "PytorchStreamWriter failed", "inline_container")


def cannot_be_written(error: BaseException, what: str) -> OutputError | None:
    """Return the error that ``what`` cannot be written, where ``error`` says that the disk is full; else None."""
    text = str(error)
    if getattr(error, "errno", None) not in _FULL and not any(words in text for words in _WORDS):
        return None
    reason = getattr(error, "strerror", None) or text.splitlines()[0]
    return OutputError(f"{what}: cannot be written: {reason}")


@contextmanager
def naming_full_disk(what: str) -> Iterator[None]:
    """Turn a full disk in the block into one line that names what was to be written.

    Raises:
        OutputError: the disk is full, or a quota.
    """
    try:
        yield
    except AlpacaRayError:
        raise
    except Exception as error:
        full = cannot_be_written(error, what)
        if full is None:
            raise
        raise full from error
