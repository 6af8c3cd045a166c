"""A seeded supply of plausible instruction tasks, in the numbered form that a teacher would answer in.

Sentences come from combinations of verbs, subjects and settings of our own. A share of them is bad on purpose, in the
ways in which real teachers' answers are: repeated, nearly repeated, too short, cut off, without an output.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_VERBS = (
    *("Summarise", "Rewrite", "Explain", "Compare", "List", "Classify", "Translate into Spanish", "Criticise"),
    *("Outline", "Shorten", "Estimate", "Rank", "Describe", "Correct", "Paraphrase", "Categorise", "Justify"),
    *("Simplify", "Predict", "Defend", "Illustrate", "Question", "Condense", "Expand", "Review", "Adapt"),
)
_THINGS = (
    "the opening paragraph of a gardening column",
    "three arguments for a four-day week",
    "the rules of a board game",
    "the minutes of a village council",
    "a complaint about a late parcel",
    "the plot of a short detective story",
    "the advantages of rail over road",
    "a recipe for lentil soup",
    "an apology to a neighbour",
    "the causes of soil erosion",
    "a weather warning for sailors",
    "the steps of a science experiment",
    "a job advert for a beekeeper",
    "the life cycle of a salmon",
    "an interview with a glass blower",
    "the budget of a student household",
    "a review of a mountain hostel",
    "the history of the bicycle",
    "a speech for a retirement party",
    "the warranty terms of a coffee grinder",
)
_MANNERS = (
    "for a reader of ten years",
    "in exactly two sentences",
    "as a numbered list",
    "without using technical terms",
    "in the tone of a sports reporter",
    "so that it fits on a postcard",
    "with one example from daily life",
    "from the point of view of a sceptic",
    "using only words of two syllables",
    "for someone in a hurry",
    "and name the weakest point",
    "as a dialogue between two friends",
    "for a radio announcement",
    "and add a fitting headline",
    "in formal language",
    "as if it were the year 1900",
)
_QUESTIONS = (
    "What would change if {thing} had to be prepared {manner}?",
    "How could one present {thing} {manner}?",
    "Why might an editor reject {thing} when it is written {manner}?",
)
_NAMES = ("Amira", "Jonas", "Li Wei", "Beatriz", "Tomasz", "Ngozi", "Freya", "Ravi")


@dataclass(frozen=True)
class Faults:
    """Shares of tasks that are bad, each from 0 to 1; what is left over is good."""

    duplicate: float = 0.08
    near_duplicate: float = 0.08
    too_short: float = 0.05
    unparsable: float = 0.05
    empty_output: float = 0.03
    blacklisted: float = 0.04


@dataclass(frozen=True)
class Task:
    """One task of an answer."""

    instruction: str
    input: str
    output: str


def answer(prompt: str, *, seed: int, first_number: int, tasks: int, faults: Faults) -> str:
    """Return what a teacher writes behind ``{first_number}. Instruction:``. The same arguments give the same text."""
    rng = random.Random(f"{seed}:{prompt}")
    # Repetitions must be of tasks that other prompts get too: they come from a small stock of the seed's.
    stock = random.Random(f"{seed}:stock")
    repeated = [make_task(stock) for _ in range(8)]
    blocks = []
    for number in range(first_number, first_number + tasks):
        blocks.append(_block(rng, number, repeated, faults))
    return "###\n".join(blocks).removeprefix(f"{first_number}. Instruction:")


def make_task(rng: random.Random) -> Task:
    """Return a task drawn at random."""
    thing, manner = rng.choice(_THINGS), rng.choice(_MANNERS)
    if rng.random() < 0.25:
        instruction = rng.choice(_QUESTIONS).format(thing=thing, manner=manner)
    else:
        instruction = f"{rng.choice(_VERBS)} {thing} {manner}."
    given = ""
    if rng.random() < 0.4:
        given = f"{rng.choice(_NAMES)} wrote on the {rng.randint(1, 28)}th: about {thing}, {rng.randint(3, 900)} words."
    output = f"{rng.choice(_NAMES)} would put it this way: {thing}, {manner}; that takes {rng.randint(2, 60)} minutes."
    return Task(instruction, given, output)


def _block(rng: random.Random, number: int, repeated: list[Task], faults: Faults) -> str:
    task = make_task(rng)
    kinds = list(vars(faults))
    weights = [getattr(faults, kind) for kind in kinds]
    kind = rng.choices([*kinds, "good"], [*weights, max(0.0, 1.0 - sum(weights))])[0]
    if kind == "duplicate":
        task = rng.choice(repeated)
    elif kind == "near_duplicate":
        base = rng.choice(repeated)
        task = Task(
            f"{base.instruction.rstrip('.?')} {rng.choice(('please', 'today', 'again'))}.", base.input, base.output
        )
    elif kind == "too_short":
        task = Task("Tell a joke.", task.input, task.output)
    elif kind == "blacklisted":
        task = Task(f"Draw a diagram of {rng.choice(_THINGS)} {rng.choice(_MANNERS)}.", task.input, task.output)
    elif kind == "empty_output":
        task = Task(task.instruction, task.input, "")
    elif kind == "unparsable":
        return f"{number}. Instruction: {task.instruction}\nAnswer: {task.output}\n"
    return (
        f"{number}. Instruction: {task.instruction}\n"
        f"{number}. Input:\n{task.input or '<noinput>'}\n"
        f"{number}. Output:\n{task.output}\n"
    )
