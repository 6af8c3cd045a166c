"""How many words an instruction has, also where its script is written without spaces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# Han, Japanese kana: about two characters a word.
_DENSE = "\u3005\u3006\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f" + (
    "\U00020000-\U000323af"
)
# Thai, Lao, Burmese, Khmer: about four.
_LONG = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
UNSPACED = re.compile(f"[{_DENSE}{_LONG}]")
_RUNS = re.compile(f"(?P<dense>[{_DENSE}]+)|(?P<long>[{_LONG}]+)|[^\\W{_DENSE}{_LONG}]+")


def whitespace_words(text: str) -> int:
    """Return the number of runs between white space, as the original counts."""
    return len(text.split())


def unicode_words(text: str) -> int:
    """Return the same for scripts with spaces; in those without, each run of n characters has n/2 words, rounded up.

    In Thai, Lao, Burmese and Khmer, which spell words out, it is n/4.
    """
    return sum(1 if not UNSPACED.search(piece) else _in_piece(piece) for piece in text.split())


def _in_piece(piece: str) -> int:
    count = 0
    for run in _RUNS.finditer(piece):
        size = 2 if run["dense"] else 4 if run["long"] else len(run[0])
        count += -(-len(run[0]) // size)
    return count


COUNTERS: Mapping[str, Callable[[str], int]] = {"whitespace": whitespace_words, "unicode": unicode_words}
