"""Sentences of an instruction, and the noun phrases in them, from part-of-speech tags.

Tags are those of the British National Corpus (C5), which the tagger in ``verbs.py`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:[-'’./]\w+)*['’]?s?|[^\w\s]")
_QUOTED = re.compile(r"“[^”]*”|\"[^\"]*\"|‘[^’]*’|(?<!\w)'[^']*'(?!\w)|`[^`]*`|\[[^\]]*\]|\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[^\W\d_][.!?])\s+(?=[\"'“‘]?[A-Z0-9])|(?<=[\d)\"”][.!?])\s+(?=[A-Z])|[!?]\s|\n")
QUOTE = "Quotation"  # what stands for a quoted text: a name, as far as the grammar is concerned
_MAX_TOKENS = 40

NOUN = frozenset({"NN0", "NN1", "NN2"})
OPENS = frozenset({"AT0", "DT0", "DPS"})
_INSIDE = frozenset({"AJ0", "AJC", "AJS", "CRD", "ORD", "NP0", "UNC", "POS", "PNI", "ZZ0"}) | OPENS | NOUN
_CLAUSE = frozenset({"CJS", "CJT", "AVQ", "DTQ", "PNQ", "TO0"})
RECIPIENTS = frozenset({"me", "us", "him", "her", "them", "you"})


class Token(NamedTuple):
    """A word with its lemma and C5 tag."""

    word: str
    lemma: str
    tag: str


def sentences(text: str) -> Iterator[list[str]]:
    """Yield the words of each sentence (40 at most); a quoted text stands as one word, brackets are left out."""
    text = _QUOTED.sub(lambda match: "" if match[0][0] in "([" else f" {QUOTE} ", text.strip()[:600])
    for sentence in _SENTENCE_END.split(text):
        words = _WORD.findall(sentence)
        if any(word[0].isalpha() for word in words):
            yield words[:_MAX_TOKENS]


def object_of(tokens: list[Token]) -> str | None:
    """Return the head of the direct object in what follows a verb; phrases with a preposition may stand between."""
    index = 0
    while index < len(tokens) and (tokens[index].tag in ("AVP", "AV0", "PNX") or tokens[index].word in RECIPIENTS):
        index += 1
    while (index < len(tokens) and tokens[index].tag in ("PRP", "PRF")) or _is_comma_phrase(tokens, index):
        index += 1 if tokens[index].word != "," else 2  # "in detail", ", in two words,"
        index += _length(tokens[index:])
        if index < len(tokens) and tokens[index].word == "," and not _is_comma_phrase(tokens, index):
            index += 1
        if index < len(tokens) and tokens[index].tag not in OPENS | {"PRP", "PRF"} and tokens[index].word != ",":
            return None  # only an article shows that a new phrase begins
    if index >= len(tokens) or tokens[index].tag in _CLAUSE:
        return None
    return head_of(tokens[index:])


def _is_comma_phrase(tokens: Sequence[Token], index: int) -> bool:
    return index + 1 < len(tokens) and index > 0 and tokens[index].word == "," and tokens[index + 1].tag == "PRP"


def _length(tokens: Sequence[Token]) -> int:
    """Return how many tokens the noun phrase at the start has."""
    noun = False
    for index, token in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        if token.tag in NOUN:
            noun = True
        elif token.tag in OPENS and index and tokens[index - 1].tag not in OPENS and tokens[index - 1].tag != "POS":
            return index  # an article opens the next phrase
        elif token.tag in _INSIDE or token.word == QUOTE:
            continue
        elif not noun and following is not None and following.tag in _INSIDE | {"VVG", "VVN", "AVP"}:
            joins = token.tag in ("AV0", "CJC", "VVG", "VVN", "VVD", "AVP")  # "fully fleshed out", "short and sweet"
            if not (joins or (token.word in ",/" and index)):
                return index
        else:
            return index
    return len(tokens)


def head_of(tokens: Sequence[Token]) -> str | None:
    """Return the head of the noun phrase at the start: its last common noun, unless a name follows directly."""
    phrase = list(tokens[: _length(tokens)])
    if phrase and phrase[0].tag in ("PNP", "PNX"):
        return None
    for index in range(len(phrase) - 1, -1, -1):
        token = phrase[index]
        possessor = index + 1 < len(phrase) and phrase[index + 1].tag == "POS"
        if token.tag in NOUN and token.word != QUOTE and not possessor and token.word[0].isalpha():
            return token.lemma.lower()
        if token.lemma == "one" and index and phrase[index - 1].tag in ("AJ0", "AJS"):
            return "one"
    return None
