"""The original's filters on a single entry, each under a name, in its order.

Source: ``post_process_gpt3_response`` of stanford_alpaca. The empty output, which the original lets pass, is ours.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from alpaca_ray.generate.parse import Entry
from alpaca_ray.novelty.rejected import Reason

MIN_WORDS = 4
MAX_WORDS = 150
# Words of tasks that a text model cannot carry out.
BLACKLIST = (
    "image",
    "images",
    "graph",
    "graphs",
    "picture",
    "pictures",
    "file",
    "files",
    "map",
    "maps",
    "draw",
    "plot",
    "go to",
    "video",
    "audio",
    "music",
    "flowchart",
    "diagram",
)
_BLACKLISTED = re.compile(r"\b(" + "|".join(BLACKLIST) + r")\b", re.IGNORECASE)

_RULES: tuple[tuple[Reason, Callable[[Entry], bool]], ...] = (
    ("too_short", lambda entry: len(entry.instruction.split()) < MIN_WORDS),
    ("too_long", lambda entry: len(entry.instruction.split()) > MAX_WORDS),
    ("blacklisted_word", lambda entry: bool(_BLACKLISTED.search(entry.instruction))),
    ("write_a_program", lambda entry: entry.instruction.startswith("Write a program")),
    ("starts_with_punctuation", lambda entry: entry.instruction[0] in string.punctuation),
    ("not_ascii_start", lambda entry: not entry.instruction[0].isascii()),
    ("empty_output", lambda entry: not entry.output),
)


def reason_to_reject(entry: Entry) -> Reason | None:
    """Return the first reason for which an entry is dropped before novelty is asked, or None."""
    if entry.problem is not None:
        return entry.problem
    return next((reason for reason, applies in _RULES if applies(entry)), None)
