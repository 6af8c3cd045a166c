"""Root verb and direct object of an instruction, from the part-of-speech tags of its first sentence.

Self-instruct (Wang et al. 2022) took both from a constituency parser and showed the most common pairs. Instructions
are a narrow kind of English (commands, questions, "you ..." statements), so a few rules over tags find them; how often
they agree with labels made by hand is measured in ``tests/unit/report/test_report_verbs.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from alpaca_ray.report.phrases import NOUN, OPENS, QUOTE, RECIPIENTS, Token, head_of, object_of, sentences

_BASE = frozenset({"VVB", "VVI", "VDB", "VDI", "VHB", "VHI"})
_FULL = frozenset({"VVB", "VVI", "VVZ", "VVD", "VVN", "VVG"})
_FINITE = frozenset({"VVB", "VVZ", "VVD", "VHB", "VHZ", "VHD"})
_BE = frozenset({"VBB", "VBZ", "VBD", "VBI", "VBN", "VBG"})
_HELPERS = frozenset({"VM0", "VDB", "VDZ", "VDD", "VHB", "VHZ", "VHD"})
_AFTER_COMMAND = OPENS | {"CRD", "AJ0", "AJS", "ORD", "PNP", "PNX", "CJT", "CJS", "AVQ", "DTQ", "PNQ", "NN2", "NP0"}
_POLITE = frozenset({"please", "kindly", "now", "first", "next", "then", "finally", "hi", "hello", "hey", "ok", "okay"})
_LEADS = frozenset({"PRP", "PRF", "CJS", "VVG", "VVN", "AVQ", "CJT", "TO0"})


class Shape(NamedTuple):
    """Root verb and head noun of its direct object, as lemmas in lower case; None where there is none."""

    verb: str | None
    object: str | None


Tagger = Callable[[Sequence[str]], list[Token]]
NOTHING = Shape(None, None)


def shape_of(text: str, tag: Tagger, can_be_verb: Callable[[str], bool]) -> Shape:
    """Return the root verb and direct object of an instruction.

    A form of "be" is no root verb, and a name, pronoun, number, quotation or clause no object, as in self-instruct.

    Args:
        tag: gives each word of a sentence its lemma and tag in context.
        can_be_verb: whether a word, by itself, can be the base form of a verb.
    """
    for words in itertools.islice(sentences(text), 2):  # the second where the first only leads in ("Given two words.")
        while words and (words[0].lower() in _POLITE or not words[0][0].isalnum()):
            words = words[1:]
        if not words:
            continue
        if words[0] != QUOTE and not words[0].isupper():
            words = [words[0].lower(), *words[1:]]
        found = _sentence(tag(words), can_be_verb)
        if found is not None:
            return found
    return NOTHING


def _sentence(tokens: list[Token], can_be_verb: Callable[[str], bool]) -> Shape | None:
    found = _clause(tokens, can_be_verb)
    if found is not None:
        return found
    for index, token in enumerate(tokens):  # what leads in ("Given two words, ...") ends at a comma or colon
        if token.word in ",:;-–—" and index + 1 < len(tokens):
            rest = tokens[index + 1 :]
            while len(rest) > 1 and (rest[0].tag in ("CJC", "AV0") or rest[0].word.lower() in _POLITE):
                rest = rest[1:]
            found = _clause(rest, can_be_verb)
            if found is not None:
                return found
    return _first_command(tokens)


def _clause(tokens: list[Token], can_be_verb: Callable[[str], bool]) -> Shape | None:
    """Read a clause that begins here; None where it only leads in to another one."""
    head = tokens[0]
    if head.tag == "AV0" and len(tokens) > 1 and tokens[1].tag in _BASE:  # "carefully read ..."
        return _command(tokens[1:])
    if _is_command(tokens, can_be_verb):
        return _command([head, *tokens[1:]])
    if head.tag in ("AVQ", "DTQ", "PNQ") or head.tag in _HELPERS | _BE:
        return _question(tokens, can_be_verb)
    if head.tag in ("PRP", "PRF") and len(tokens) > 2 and tokens[1].tag == "DTQ":  # "in which year did ..."
        return _question([Token("when", "when", "AVQ"), *tokens[3:]], can_be_verb)
    if head.tag in _LEADS:
        return None
    return _statement(tokens)


def _is_command(tokens: list[Token], can_be_verb: Callable[[str], bool]) -> bool:
    head = tokens[0]
    if head.tag in ("VVB", "VVI"):
        return True
    if head.tag in ("VVN", "VVD") and head.word == head.lemma and can_be_verb(head.word):  # "put", "come"
        return True
    if head.tag in ("VDB", "VHB"):  # "do" and "have" as full verbs: "do the sum", but "do you know"
        return len(tokens) > 1 and tokens[1].tag in OPENS
    if head.tag in OPENS | _HELPERS | _BE | {"PNP", "PRP", "CRD", "AVQ", "DTQ", "PNQ"} or not head.word[0].isalpha():
        return False
    following = tokens[1] if len(tokens) > 1 else None
    if following is None:
        return False
    if following.tag in ("CJC", "AVP") and len(tokens) > 2 and can_be_verb(head.word.lower()):  # "sum up the numbers"
        return tokens[2].tag in OPENS | {"VVB", "VVI"}
    if following.tag == "CRD" and head.tag == "NN1" and len(tokens) > 2:  # a verb that the lexicon lacks
        return tokens[2].tag in ("AJ0", "NN2", "NN0") or can_be_verb(head.word.lower())
    if following.tag == "PRP" and tokens[-1].word == ".":  # "reply to the mail." is a sentence, "plan for a trip" not
        return can_be_verb(head.word.lower())
    if following.tag in OPENS or following.word.lower() in RECIPIENTS:  # no noun stands before "the"
        return head.tag not in ("CJS", "VVG", "VVN", "AV0", "TO0", "CJT")
    return can_be_verb(head.word.lower()) and (following.tag in _AFTER_COMMAND or following.word == QUOTE)


def _command(tokens: list[Token]) -> Shape:
    verb = tokens[0]
    lemma = verb.lemma if verb.tag in _BASE else verb.word
    rest = tokens[1:]
    if len(rest) > 1 and rest[0].tag == "CJC" and rest[1].tag in _BASE:  # "compare and contrast the plays": one object
        rest = rest[2:]
    return Shape(lemma.lower(), object_of(rest))


def _question(tokens: list[Token], can_be_verb: Callable[[str], bool]) -> Shape | None:
    """Read "which X does Y verb Z", "can you verb Z", "how is X verbed", "which X verbs Z"."""
    fronted = head_of(tokens[1:]) if tokens[0].tag == "DTQ" else None
    if tokens[0].tag == "AVQ" and len(tokens) > 2 and tokens[1].lemma.lower() in ("many", "much"):
        fronted = head_of(tokens[1:])
    helper = next((index for index, token in enumerate(tokens) if token.tag in _HELPERS | _BE), None)
    verb = next((index for index, token in enumerate(tokens) if token.tag in _FULL), None)
    if verb is not None and (helper is None or verb < helper):
        return Shape(tokens[verb].lemma.lower(), object_of(tokens[verb + 1 :]))  # what is fronted is the subject
    if helper is None:
        return None
    rest = tokens[helper + 1 :]
    if tokens[helper].tag in _BE:
        return _passive(rest) if tokens[0].tag == "AVQ" or fronted or helper == 0 else NOTHING
    if tokens[helper].tag.startswith("VH") and not any(token.tag in _FULL | {"VBN", "VHN"} for token in rest):
        return Shape("have", object_of(rest) or fronted)
    for index, token in enumerate(rest):
        if token.tag in _BE:
            later = next((t for t in rest[index + 1 :] if t.tag not in ("AV0", "XX0")), None)
            return Shape(later.lemma.lower(), None) if later and later.tag in ("VVN", "VVG") else NOTHING
        if token.tag in _FULL | {"VHI", "VDI"} or (token.tag in ("VDB", "VHB") and index):
            return Shape(token.lemma.lower(), object_of(rest[index + 1 :]) or fronted)
    for index, token in enumerate(rest[1:], 1):  # the tagger took the verb for a noun: "how does democracy work"
        following = rest[index + 1].tag if index + 1 < len(rest) else "PUN"
        if token.tag == "NN1" and following not in NOUN | {"PRF", "POS", "NP0"} and can_be_verb(token.word):
            return Shape(token.word.lower(), object_of(rest[index + 1 :]) or fronted)
    return NOTHING


def _passive(tokens: list[Token]) -> Shape:
    """Read what follows "be": a participle behind its subject is the verb ("how is X made")."""
    for index, token in enumerate(tokens):
        if token.tag in ("VVN", "VVG") and index and tokens[index - 1].tag in NOUN | {"NP0", "PNP", "AV0", "VBG"}:
            return Shape(token.lemma.lower(), object_of(tokens[index + 1 :]) if token.tag == "VVG" else None)
    if len(tokens) > 1 and tokens[0].tag == "VBG" and tokens[1].tag == "VVN":
        return Shape(tokens[1].lemma.lower(), None)
    return NOTHING


def _statement(tokens: list[Token]) -> Shape | None:
    """Read "you have X", "I want ...", "the following text describes X": the first finite verb."""
    for index, token in enumerate(tokens):
        if token.tag in _BE:
            later = next((i for i in range(index + 1, len(tokens)) if tokens[i].tag not in ("AV0", "XX0")), None)
            if later is None or tokens[later].tag not in ("VVN", "VVG"):
                return NOTHING
            return Shape(tokens[later].lemma.lower(), object_of(tokens[later + 1 :]))  # "you are given two words"
        if token.tag in _HELPERS and index + 1 < len(tokens):
            later = next((i for i in range(index + 1, len(tokens)) if tokens[i].tag not in ("AV0", "XX0", "PNP")), None)
            if later is not None and tokens[later].tag in _FULL | {"VHI", "VDI"}:
                return Shape(tokens[later].lemma.lower(), object_of(tokens[later + 1 :]))
            if later is not None and tokens[later].tag in _BE:
                return NOTHING
        if token.tag in _FINITE and index and tokens[index - 1].tag in NOUN | {"PNP", "NP0", "PNI", "AV0", "PNQ"}:
            return Shape(token.lemma.lower(), object_of(tokens[index + 1 :]))
        if token.word in ",:;" or token.tag in ("PRP", "PRF", "CJS"):
            return None
    return NOTHING


def _first_command(tokens: list[Token]) -> Shape | None:
    """Read the first base form that follows no "to", helper or subject: a command behind an unmarked lead-in."""
    for index, (before, token, after) in enumerate(zip(tokens, tokens[1:], tokens[2:], strict=False)):
        if (
            token.tag in ("VVB", "VVI")
            and before.tag not in {"TO0", "PNP", "NN2", "NN0", "PNQ", "CJT", "CJC"} | _HELPERS
            and after.tag in OPENS | {"CRD", "AJ0"}
        ):
            return _command(tokens[index + 1 :])
    return None
