"""Rewriting an instruction into a harder one, or into another of its kind.

The operators are those of Evol-Instruct (arXiv 2304.12244): five that deepen a task and one that broadens the range of
tasks; their words here are ours. So are the signs by which a failed rewriting is known.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from alpaca_ray.generate.entry import NO_INPUT, Entry
from alpaca_ray.generate.filters import Rule

OPERATORS: Mapping[str, str] = {
    "constrain": "Keep what the task is about, and add one condition that a solution has to meet as well, such as a "
    "limit, a form, an exception or a reader it is meant for.",
    "deepen": "Keep the subject, and ask for more insight into it: causes in place of facts, consequences, trade-offs, "
    "or a case in which the usual answer fails.",
    "concretize": "Replace what is general in the task by something specific: a certain place, trade, person, figure "
    "or situation, so that a general answer would no longer do.",
    "reason": "Change the task so that no single thought solves it: the solution needs at least three steps, each of "
    "which builds on the one before.",
    "complicate_input": "Give the task richer material to work on: put a small table, a list of records, a fragment of "
    "code or JSON, a log or a formula into the input, and make the solution depend on it.",
    "broaden": "Invent a task of the same field and of about the same difficulty that hardly anybody would think of, "
    "and that asks for something else in other words.",
}

_LEAK = re.compile(
    r"\b(?:source|original|rewritten|re-written|evolved|harder|modified)\s+(?:task|instruction|prompt)s?\b"
    r"|\bgiven\s+(?:task|prompt)\b|#[^#\n]*(?:task|instruction|prompt)[^#\n]*#",
    re.IGNORECASE,
)
_OUTPUT_LEAK = re.compile(r"\b(?:source|rewritten|re-written|evolved)\s+(?:task|instruction|prompt)s?\b", re.IGNORECASE)
_SORRY = re.compile(r"\bsorry\b|\bas an ai\b|\bi (?:cannot|can't|can’t|am unable to)\b", re.IGNORECASE)
_SHORT = 80  # words: a longer answer that regrets something has answered


def _leaks(entry: Entry) -> bool:
    return bool(_LEAK.search(entry.instruction) or _OUTPUT_LEAK.search(entry.output))


def _refuses(entry: Entry) -> bool:
    return len(entry.output.split()) < _SHORT and _SORRY.search(entry.output[:120]) is not None


def _says_nothing(entry: Entry) -> bool:
    return not any(character.isalnum() for character in entry.output)


# What a failed rewriting looks like (section 3.2 of the paper). That it is no copy, novelty sees to.
EVOLVED_RULES: tuple[Rule, ...] = (("prompt_leak", _leaks), ("refused", _refuses), ("empty_output", _says_nothing))


def choose_operator(rng: random.Random) -> str:
    """Return the words of an operator, each as likely as the others."""
    return OPERATORS[rng.choice(list(OPERATORS))]


def encode_evolve(header: str, operator: str, task: Mapping[str, Any], *, as_json: bool) -> str:
    """Return the prompt for one rewritten task.

    Args:
        header: with ``{operator}`` for what is to be done; where it is missing, that follows the header.
        as_json: the answer is to be a JSON object; otherwise it is the numbered form, and the prompt ends where the
            instruction of task 1 begins.
    """
    head = header.replace("{operator}", operator) if "{operator}" in header else f"{header.rstrip()}\n\n{operator}\n\n"
    instruction = " ".join(str(task["instruction"]).split())
    shown = f"{head}Instruction: {instruction}\nInput:\n{task.get('input') or NO_INPUT}\n\n"
    if as_json:
        return (
            shown + "Answer with one JSON object that has the keys instruction, input (an empty string where there is "
            "none) and output, and with nothing else.\n"
        )
    return (
        shown + "Write the other task in this form, with <noinput> where it needs no input:\n"
        "1. Instruction: ...\n1. Input:\n...\n1. Output:\n...\n\n###\n1. Instruction:"
    )
