"""Tokens of an instruction, and their numbers.

Two tokenisers: ``rouge``, whose token lists equal those of ``rouge_score.tokenize`` (0.1.2) without a stemmer, and
``unicode``, which sees more than ``a-z0-9``: the first drops every other character, so that all Chinese instructions
are the same empty list to it.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TokenizerName = Literal["rouge", "unicode"]

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
# Scripts written without spaces: Han, kana, Yi, Thai, Lao, Khmer, Burmese. Each character is a token.
_UNSPACED = (
    *("\u0e00-\u0eff", "\u1000-\u109f", "\u1780-\u17ff", "\u3005-\u3007", "\u3040-\u30ff", "\u31f0-\u31ff"),
    *("\u3400-\u4dbf", "\u4e00-\u9fff", "\ua000-\ua48f", "\ua9e0-\ua9ff", "\uaa60-\uaa7f", "\uf900-\ufaff"),
    "\U00020000-\U000323af",
)


def tokenize(text: str) -> list[str]:
    """Return the lower-case runs of ``a-z0-9`` in ``text``; everything else separates."""
    return _NOT_ALPHANUMERIC.sub(" ", text.lower()).split()


def tokenize_unicode(text: str) -> list[str]:
    """Return the words of a text in any script.

    The text is brought to NFKC, case-folded, and brought to NFKC again; format characters (soft hyphens, joiners) go.
    A word is a run of letters and digits with their combining marks; in scripts that put no spaces between words
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Yi) each character with its marks is a token of its own.
    """
    if text.isascii():  # the same result, and most of what is asked
        return tokenize(text)
    pattern, ignored = _unicode_rules()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return pattern.findall(folded.translate(ignored))


def tokenizer(name: TokenizerName) -> Callable[[str], list[str]]:
    """Return the function that a tokeniser's name stands for."""
    return {"rouge": tokenize, "unicode": tokenize_unicode}[name]


@functools.cache
def _unicode_rules() -> tuple[re.Pattern[str], dict[int, None]]:
    # Python's \w knows letters and digits, and no combining marks: those are listed, from the tables of this Python.
    marks: list[str] = []
    ignored: dict[int, None] = {}
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] == "M":
            marks.append(f"\\U{code:08x}")
        elif category == "Cf":
            ignored[code] = None
    mark, unspaced = "".join(marks), "".join(_UNSPACED)
    pattern = (
        rf"(?:(?![_\W])[{unspaced}]|[{mark}])[{mark}]*|(?:(?![{unspaced}])[^\W_])(?:(?![{unspaced}])[^\W_]|[{mark}])*"
    )
    return re.compile(pattern), ignored


@dataclass(frozen=True)
class TokenLists:
    """Token lists as numbers, one behind the other.

    Attributes:
        flat: token numbers of all lists, int32, shape (tokens,).
        offsets: where each list begins, and the end of the last, int64, shape (lists + 1,).
    """

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each list, shape (lists,)."""
        return np.diff(self.offsets)

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TokenLists:
        """Return some of the lists, in the order of ``indices``."""
        parts = [self.flat[self.offsets[index] : self.offsets[index + 1]] for index in indices]
        return TokenLists.of(parts)

    @staticmethod
    def of(parts: Sequence[NDArray[np.int32] | list[int]]) -> TokenLists:
        """Join lists of token numbers."""
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        flat = np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, dtype=np.int32)
        return TokenLists(flat, offsets)


class Vocabulary:
    """Gives every distinct token a number, from 0."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def encode(self, lists: Iterable[list[str]], *, grow: bool = True) -> TokenLists:
        """Return the numbers of the tokens of each list.

        Args:
            grow: give tokens that are new the next numbers; else all of them get one, which no known token has.
        """
        numbers = self._numbers
        flat: list[int] = []
        offsets = [0]
        for tokens in lists:
            if grow:
                flat += [numbers.setdefault(token, len(numbers)) for token in tokens]
            else:
                flat += [numbers.get(token, len(numbers)) for token in tokens]
            offsets.append(len(flat))
        return TokenLists(np.array(flat, dtype=np.int32), np.array(offsets, dtype=np.int64))
