"""From tokens to text as it streams: no half characters, and no part of a stop text, ever leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"


class IncrementalDecoder:
    """Turns one answer's tokens into text, token by token.

    A byte-level tokenizer may need several tokens for one character, and a piece's text may depend on the token before
    it: what was given out last is decoded again together with the new tokens, and only what is new is returned.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0  # start of the tokens that are decoded again
        self._done = 0  # tokens before this one have been given out

    def push(self, token: int) -> str:
        """Return the text that this token completes, empty where it ends in the middle of a character."""
        self._tokens.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """Return what was held back, an incomplete character as the replacement character."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        known = self._decode(self._tokens[self._context : self._done])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(known) or (text.endswith(_UNFINISHED) and not final):
            return ""
        self._context, self._done = self._done, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopScanner:
    """Lets text through up to the first stop text, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may leave, and whether a stop text was met (nothing may follow then)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what was held back: the answer ended before it became a stop text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
