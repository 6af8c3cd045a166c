"""One piece of a teacher's answer."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_ray.novelty.rejected import Reason

NO_INPUT = "<noinput>"


@dataclass(frozen=True)
class Entry:
    """A task, or, where ``problem`` is set, text that is none."""

    text: str
    instruction: str = ""
    input: str = ""
    output: str = ""
    problem: Reason | None = None


def task_entry(text: str, instruction: str, given: str, output: str) -> Entry:
    """Return a task; an input that says there is none becomes empty."""
    return Entry(text, instruction, "" if given.lower() == NO_INPUT else given, output)
