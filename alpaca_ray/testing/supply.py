"""A seeded supply of plausible instruction tasks, in the numbered form that a teacher would answer in.

Sentences come from combinations of verbs, subjects and settings of our own. A share of them is bad on purpose, in the
ways in which real teachers' answers are: repeated, nearly repeated, too short, cut off, without an output.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

_VERBS = (
    *("Summarise", "Rewrite", "Explain", "Compare", "List", "Classify", "Translate into Spanish", "Criticise"),
    *("Outline", "Shorten", "Estimate", "Rank", "Describe", "Correct", "Paraphrase", "Categorise", "Justify"),
    *("Simplify", "Predict", "Defend", "Illustrate", "Question", "Condense", "Expand", "Review", "Adapt"),
)
_FORMS = (
    *(
        "a newspaper column",
        "a diary entry",
        "three arguments",
        "the minutes of a meeting",
        "a complaint",
        "a plot outline",
    ),
    *("an apology", "a job advert", "an interview", "a review", "a speech", "a set of instructions", "a short poem"),
    *("a news report", "a proverb", "a dialogue", "a quiz question", "a postcard", "a legal clause", "a recipe"),
    *("a bedtime story", "an opening sentence", "a radio script", "a eulogy", "a slogan", "a timetable", "a petition"),
)
_TOPICS = (
    *(
        "late parcels",
        "lentil soup",
        "soil erosion",
        "sailing in fog",
        "beekeeping",
        "the life of salmon",
        "glass blowing",
    ),
    *(
        "student budgets",
        "mountain hostels",
        "old bicycles",
        "retirement",
        "coffee grinders",
        "night trains",
        "chess clubs",
    ),
    *("village councils", "a four-day week", "school orchestras", "apple orchards", "street markets", "tidal power"),
    *("a broken lift", "ice hockey", "paper making", "volcanoes", "lost luggage", "choir practice", "roof gardens"),
    *("rain barrels", "public libraries", "pottery", "stage fright", "desert travel", "barn owls", "noisy neighbours"),
    *("cable cars", "first aid", "sourdough", "crossword puzzles", "weather balloons", "carpentry", "sign language"),
)
_READERS = (
    *("children of ten", "a sceptic", "tourists", "a busy nurse", "the mayor", "new colleagues", "football fans"),
    *("an examiner", "pensioners", "a pen friend", "night-shift workers", "historians", "a travel guide", "farmers"),
)
_MANNERS = (
    *("in exactly two sentences", "as a numbered list", "without technical terms", "with one example from daily life"),
    *("using only short words", "and name the weakest point", "and add a fitting headline", "in formal language"),
    *("as if it were the year 1900", "so that it fits on a card", "with a pinch of irony", "in the past tense"),
    *("starting with a question", "without using the letter z", "in alphabetical order", "with a surprising ending"),
)
_QUESTIONS = (
    "What would {reader} miss in {form} about {topic} that is written {manner}?",
    "How could one turn {form} about {topic} into something for {reader}, {manner}?",
    "Why might {reader} reject {form} on the subject of {topic}, even {manner}?",
)
_SYLLABLES = (
    "ba",
    "dor",
    "el",
    "fin",
    "gro",
    "ha",
    "il",
    "jo",
    "kem",
    "lu",
    "mar",
    "ne",
    "os",
    "pri",
    "ru",
    "ta",
    "vo",
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
    leak: float = 0.0


FAULTLESS = Faults(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Task:
    """One task of an answer. Where ``broken``, a text answer writes it in a form that no parser can read."""

    instruction: str
    input: str
    output: str
    broken: bool = False


def draw_tasks(key: str, seed: int, count: int, faults: Faults) -> list[Task]:
    """Return ``count`` tasks, the same for the same ``key`` and ``seed``."""
    rng = random.Random(key)
    return [_draw(rng, _repeated(seed), faults) for _ in range(count)]


def numbered(tasks: Sequence[Task], first_number: int) -> str:
    """Return tasks in the numbered form, without the heading of the first, which ends a prompt."""
    blocks = [_block(number, task) for number, task in enumerate(tasks, start=first_number)]
    return "###\n".join(blocks).removeprefix(f"{first_number}. Instruction:")


@cache
def _repeated(seed: int) -> list[Task]:
    """Tasks that many prompts get: repetitions across answers come from this small stock."""
    stock = random.Random(f"{seed}:stock")
    return [make_task(stock) for _ in range(8)]


def make_task(rng: random.Random) -> Task:
    """Return a task drawn at random."""
    form, topic, reader, manner = (rng.choice(words) for words in (_FORMS, _TOPICS, _READERS, _MANNERS))
    if rng.random() < 0.25:
        instruction = rng.choice(_QUESTIONS).format(form=form, topic=topic, reader=reader, manner=manner)
    else:
        instruction = f"{rng.choice(_VERBS)} {form} about {topic} for {reader} {manner}."
    if rng.random() < 0.6:  # made-up names: without them, thousands of tasks from one stock of phrases are too alike
        instruction += f" Mention {_place(rng)}, {_place(rng)} and {_place(rng)}."
    given = ""
    if rng.random() < 0.4:
        given = f"{rng.choice(_NAMES)} wrote on the {rng.randint(1, 28)}th: {form}, {rng.randint(3, 900)} words."
    output = f"{rng.choice(_NAMES)} would say to {reader}: {topic}, {manner}; it takes {rng.randint(2, 60)} minutes."
    return Task(instruction, given, output)


def _place(rng: random.Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(3)).capitalize()


def _draw(rng: random.Random, repeated: Sequence[Task], faults: Faults) -> Task:
    task = make_task(rng)
    names, weights = _weights(faults)
    kind = rng.choices(names, cum_weights=weights)[0]
    if kind == "duplicate":
        return rng.choice(repeated)
    if kind == "near_duplicate":
        base = rng.choice(repeated)
        return Task(
            f"{base.instruction.rstrip('.?')} {rng.choice(('please', 'today', 'again'))}.", base.input, base.output
        )
    if kind == "too_short":
        return Task("Tell a joke.", task.input, task.output)
    if kind == "blacklisted":
        return Task(f"Draw a diagram of {rng.choice(_TOPICS)} {rng.choice(_MANNERS)}.", task.input, task.output)
    if kind == "empty_output":
        return Task(task.instruction, task.input, "")
    if kind == "leak":
        return Task(f"Rewritten prompt: {task.instruction}", task.input, task.output)
    return Task(task.instruction, task.input, task.output, broken=kind == "unparsable")


@cache
def _weights(faults: Faults) -> tuple[list[str], list[float]]:
    shares = vars(faults)
    weights = [*shares.values(), max(0.0, 1.0 - sum(shares.values()))]
    return [*shares, "good"], list(accumulate(weights))


def _block(number: int, task: Task) -> str:
    if task.broken:
        return f"{number}. Instruction: {task.instruction}\nAnswer: {task.output}\n"
    return (
        f"{number}. Instruction: {task.instruction}\n"
        f"{number}. Input:\n{task.input or '<noinput>'}\n"
        f"{number}. Output:\n{task.output}\n"
    )
