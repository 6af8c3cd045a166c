"""Root verbs of instructions and their objects, counted.

The tagger is HanTa's English model (Wartena 2019, "A Probabilistic Morphology Model for German Lemmatization", since
extended to part-of-speech tags), which its wheel carries: nothing is downloaded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from alpaca_ray.report.grammar import NOTHING, Shape, shape_of
from alpaca_ray.report.phrases import QUOTE, Token

TOP_VERBS = 20
TOP_OBJECTS = 4
_MODEL = "morphmodel_en.pgz"


@dataclass(frozen=True)
class Agreement:
    """Shares, from 0 to 1, of labels that the parser agrees with."""

    labelled: int
    verb: float
    object: float


# With the labels of the shipped seed tasks: tests/unit/report/test_report_verbs.py measures it again.
AGREEMENT = Agreement(192, verb=0.97, object=0.92)


@lru_cache(maxsize=1)
def _hanta() -> Any:
    from HanTa import HanoverTagger

    # By its full path: a bare name would first be looked for in the current folder, and it is unpickled.
    return HanoverTagger.HanoverTagger(str(Path(HanoverTagger.__file__).with_name(_MODEL)))


def tag(words: Sequence[str]) -> list[Token]:
    """Return each word of a sentence with its lemma and C5 tag."""
    return [
        Token(word, word, "NP0") if word == QUOTE else Token(word, lemma, kind)
        for word, lemma, kind in _hanta().tag_sent(list(words))
    ]


@lru_cache(maxsize=1 << 16)
def can_be_verb(word: str) -> bool:
    """Whether a word alone can be the base form of a verb."""
    return any(kind in ("VVB", "VVI") for kind, _ in _hanta().tag_word(word))


def parse(instruction: str) -> Shape:
    """Return the root verb and direct object of an instruction's first sentence (English; see ``grammar``)."""
    if not any("a" <= letter <= "z" for letter in instruction[:600].lower()):
        return NOTHING
    return shape_of(instruction, tag, can_be_verb)


@dataclass(frozen=True)
class VerbCounts:
    """How many instructions were parsed, of how many, and what was found.

    ``pairs`` counts (verb, object); ``verbs`` every root verb, with an object or without.
    """

    parsed: int
    of: int
    verbs: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def top(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """Return the 20 most common root verbs that have an object, each with its 4 most common objects."""
        totals: Counter[str] = Counter()
        for (verb, _), count in self.pairs.items():
            totals[verb] += count
        result = []
        for verb, _ in sorted(totals.items(), key=lambda entry: (-entry[1], entry[0]))[:TOP_VERBS]:
            objects = [(noun, count) for (other, noun), count in self.pairs.items() if other == verb]
            result.append((verb, sorted(objects, key=lambda entry: (-entry[1], entry[0]))[:TOP_OBJECTS]))
        return result


def count_verbs(instructions: Sequence[str], *, limit: int, seed: int) -> VerbCounts:
    """Parse instructions, a seeded sample of ``limit`` where there are more."""
    chosen: Iterable[str] = instructions
    if len(instructions) > limit:
        chosen = random.Random(seed).sample(instructions, limit)
    verbs: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    parsed = 0
    for instruction in chosen:
        parsed += 1
        shape = parse(instruction)
        if shape.verb:
            verbs[shape.verb] += 1
            if shape.object:
                pairs[shape.verb, shape.object] += 1
    return VerbCounts(parsed, len(instructions), verbs, pairs)
