"""The original's filters on a single entry, each under a name and settable, in its order.

Source: ``post_process_gpt3_response`` of stanford_alpaca. The empty output, which the original lets pass, is ours.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

from alpaca_ray.generate.blacklist import make_blacklist
from alpaca_ray.generate.entry import Entry
from alpaca_ray.generate.words import COUNTERS
from alpaca_ray.novelty.rejected import Reason
from alpaca_ray.settings.filters import FilterSettings

Rule = tuple[Reason, Callable[[Entry], bool]]


class EntryFilter:
    """Decides about entries one by one, before novelty is asked."""

    def __init__(self, settings: FilterSettings, extra: Sequence[Rule] = ()) -> None:
        """``extra``: further rules, asked last."""
        self._rules = [*_rules(settings), *extra]

    def reason(self, entry: Entry) -> Reason | None:
        """Return the first reason for which an entry is dropped, or None."""
        if entry.problem is not None:
            return entry.problem
        return next((reason for reason, applies in self._rules if applies(entry)), None)


def _rules(settings: FilterSettings) -> list[Rule]:
    count = COUNTERS[settings.word_count]
    shortest, longest = settings.min_words, settings.max_words
    unwanted = make_blacklist(settings.blacklist, settings.blacklist_sense)
    rules: list[Rule] = [
        ("too_short", lambda entry: count(entry.instruction) < shortest or not entry.instruction),
        ("too_long", lambda entry: count(entry.instruction) > longest),
    ]
    if unwanted is not None:
        rules.append(("blacklisted_word", lambda entry: unwanted(entry.instruction)))
    if settings.drop_write_a_program:
        rules.append(("write_a_program", lambda entry: entry.instruction.startswith("Write a program")))
    if settings.drop_punctuation_start:
        rules.append(("starts_with_punctuation", lambda entry: entry.instruction[0] in string.punctuation))
    if settings.drop_non_ascii_start:
        rules.append(("not_ascii_start", lambda entry: not entry.instruction[0].isascii()))
    if settings.drop_empty_output:
        rules.append(("empty_output", lambda entry: not entry.output))
    return rules
