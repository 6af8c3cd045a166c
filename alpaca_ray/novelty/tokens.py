"""Tokens of an instruction, as rouge-score makes them, and their encoding as characters.

The regular expressions are those of ``rouge_score.tokenize`` (0.1.2) without a stemmer, so that token lists are equal.
"""

from __future__ import annotations

import re

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_SURROGATES = range(0xD800, 0xE000)
_LAST_CHARACTER = 0x10FFFF
# Never given to a token, so that what the vocabulary does not know matches nothing.
_UNKNOWN = "\0"


def tokenize(text: str) -> list[str]:
    """Return the lower-case runs of ``a-z0-9`` in ``text``; everything else separates."""
    return _NOT_ALPHANUMERIC.sub(" ", text.lower()).split()


class Vocabulary:
    """Gives every distinct token one character, so that an instruction becomes a string of its tokens."""

    def __init__(self) -> None:
        self._characters: dict[str, str] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._characters)

    def encode(self, tokens: list[str]) -> str:
        """Return one character a token; tokens that are new get a character of their own.

        Raises:
            OverflowError: more than 1.1 million distinct tokens.
        """
        known = self._characters
        return "".join([known.get(token) or self._learn(token) for token in tokens])

    def lookup(self, tokens: list[str]) -> str:
        """Return one character a token without learning: unknown tokens become a character that matches nothing."""
        known = self._characters
        return "".join([known.get(token, _UNKNOWN) for token in tokens])

    def _learn(self, token: str) -> str:
        if self._next in _SURROGATES:  # not characters, and refused by every encoder
            self._next = _SURROGATES.stop
        if self._next > _LAST_CHARACTER:
            raise OverflowError("more distinct tokens than there are Unicode characters")
        character = self._characters[token] = chr(self._next)
        self._next += 1
        return character
