"""From the text of an answer to entries, each with the reason why it is dropped before novelty is asked, if it is."""

from __future__ import annotations

import re

from alpaca_ray.generate.entry import Entry
from alpaca_ray.generate.evolve import EVOLVED_RULES
from alpaca_ray.generate.filters import EntryFilter
from alpaca_ray.generate.json_form import parse_json
from alpaca_ray.generate.parse import parse_answer
from alpaca_ray.generate.stanford import parse_as_stanford
from alpaca_ray.novelty.rejected import Reason
from alpaca_ray.settings.filters import FilterSettings

_THINKING = re.compile(r"\s*<(think|thinking)>.*?(</\1>|\Z)", re.DOTALL)
# Where the chat template has opened the thinking, the answer only closes it.
_CLOSED = re.compile(r"\A(?:(?!<think(?:ing)?>).)*?</think(?:ing)?>", re.DOTALL)


def strip_thinking(text: str) -> str:
    """Return an answer without the thinking that a reasoning model writes before it, finished or not."""
    if "</think" in text and (closed := _CLOSED.match(text)):
        text = text[closed.end() :]
    while thought := _THINKING.match(text):
        text = text[thought.end() :]
    return text


class AnswerReader:
    """Reads answers as the settings say. Depends on nothing but them and the answer."""

    def __init__(self, settings: FilterSettings, *, first_number: int) -> None:
        """``first_number``: number of the first task asked for, in text form."""
        self._settings = settings
        self._first_number = first_number
        self._filter = EntryFilter(settings, EVOLVED_RULES if settings.strategy == "evolve" else ())

    def read(self, text: str, finish_reason: str | None) -> list[tuple[Entry, Reason | None]]:
        """Take an answer apart.

        Args:
            finish_reason: the API's; with ``length`` a last entry that may have been cut is dropped.
        """
        return [(entry, self._filter.reason(entry)) for entry in self._parse(strip_thinking(text), finish_reason)]

    def _parse(self, text: str, finish_reason: str | None) -> list[Entry]:
        if self._settings.response_format == "json_schema":
            return parse_json(text, finish_reason=finish_reason)
        parse = parse_as_stanford if self._settings.parser == "stanford" else parse_answer
        return parse(text, first_number=self._first_number, finish_reason=finish_reason)
