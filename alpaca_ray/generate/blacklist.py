"""Words of tasks that a text model cannot carry out, in any sense or only where the task makes or needs the thing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from alpaca_ray.generate.words import UNSPACED

# Words of the list that are things to do: they count where an instruction, or a part of it, begins with them.
_ACTS = ("draw", "plot", "go to", "graph")
# "plot" and "draw" as nouns are a story's plot and a lottery's draw.
_NEVER_THINGS = ("draw", "plot", "go to")
_MAKING = (
    *("draw", "sketch", "paint", "plot", "create", "make", "generate", "design", "produce", "render", "build", "show"),
    *("display", "attach", "upload", "download", "open", "save", "insert", "embed", "edit", "crop", "record"),
    *("play", "watch", "listen to", "look at", "view", "send", "provide", "include"),
)
_SEEING = ("describe", "caption", "analyse", "analyze", "interpret", "label", "classify", "identify", "transcribe")
_POINTING = ("this", "these", "following", "attached", "given", "provided", "uploaded", "shown")
_THERE = ("below", "above", "attached", "provided", "shown", "here")
_BEGINNING = r"(?:^|[.!?;:]\s+|\b(?:please|then|and)\s+|\b(?:can|could|would)\s+you\s+(?:please\s+)?)"
# "a list of files" and "a poem about music" are text.
_BETWEEN = r"(?:[\s,'’-]+(?!(?:of|about|for|with|on|to|from|in|that|which|using|how|whether)\b)\w+)"


def make_blacklist(words: Sequence[str], sense: str) -> Callable[[str], bool] | None:
    """Return what tells whether an instruction is not wanted; None for no words.

    Args:
        words: words and phrases, found as whole words in any case.
        sense: ``any``: wherever they stand (stanford_alpaca's ``find_word_in_string``). ``medium``: where the thing is
            made or handled (a verb such as "draw" or "open" with at most three words between, none a preposition),
            pointed at ("this", "the following", "... below"), or what the task is about ("describe the image." as a
            whole clause). These are rules for English; a word with letters beyond ASCII counts wherever it stands.
    """
    if not words:
        return None
    # A phrase is a regular expression in the original; ours is literal, which is the same for its list.
    anywhere = re.compile("|".join(map(_whole, words)), re.IGNORECASE)
    if sense == "any":
        return lambda instruction: anywhere.search(instruction) is not None
    acts = [word for word in words if word.lower() in _ACTS]
    things = [word for word in words if word.isascii() and word.lower() not in _NEVER_THINGS]
    patterns = [_whole(word) for word in words if not word.isascii()]
    if acts:
        patterns.append(rf"{_BEGINNING}(?:{_either(acts)})\b")
    if things:
        thing = rf"(?:{_either(things)})\b"
        patterns += [
            rf"\b(?:{_either(_MAKING)}){_BETWEEN}{{0,3}}?[\s-]+{thing}",
            rf"\b(?:{_either(_POINTING)}){_BETWEEN}?[\s-]+{thing}",
            rf"\b{thing}\s+(?:{_either(_THERE)})\b",
            rf"\b(?:{_either(_SEEING)})\s+(?:the|an?){_BETWEEN}?[\s-]+{thing}\s*(?:$|[.,;:!?])",
        ]
    medium = re.compile("|".join(patterns), re.IGNORECASE)
    # Most instructions hold no such word at all, and that is known much faster.
    return lambda instruction: anywhere.search(instruction) is not None and medium.search(instruction) is not None


def _whole(word: str) -> str:
    """Return a pattern for a whole word; in a script without spaces no end of a word can be seen."""
    return re.escape(word) if UNSPACED.search(word) else rf"\b{re.escape(word)}\b"


def _either(words: Sequence[str]) -> str:
    return "|".join(re.escape(word) for word in words)
