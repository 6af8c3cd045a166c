"""The prompt of one request: a header, a few numbered seed tasks, and the number of the task that is to follow.

The numbered form is stanford_alpaca's (``encode_prompt``); the header's words are ours.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError

NO_INPUT = "<noinput>"
SHIPPED_HEADERS = ("full", "short")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Prompt:
    """What one request sends. ``seed_ids`` names the examples in the order they are shown."""

    request_id: int
    seed_ids: list[str]
    text: str

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the text."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class PromptMaker:
    """Makes the prompt of each request from its number alone, so that a rerun asks the same things.

    Attributes:
        header: text above the examples, placeholders already filled.
        seeds: records that may serve as examples (``id``, ``instruction``, ``input``, ``output``).
        examples: how many a prompt shows.
        seed: of the random choice.
    """

    header: str
    seeds: Sequence[Mapping[str, Any]]
    examples: int
    seed: int

    def make(self, request_id: int) -> Prompt:
        """Return the prompt of request ``request_id``."""
        # A string seeds through SHA-512, the same on every platform and version.
        chosen = random.Random(f"{self.seed}:{request_id}").sample(self.seeds, self.examples)
        return Prompt(request_id, [str(task["id"]) for task in chosen], encode(self.header, chosen))


def encode(header: str, tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return the header and the tasks in the numbered form, ending where the next instruction begins."""
    parts = [header, "\n"]
    for number, task in enumerate(tasks, start=1):
        instruction = _SPACE.sub(" ", task["instruction"]).strip().rstrip(":")
        parts.append(
            f"###\n{number}. Instruction: {instruction}\n"
            f"{number}. Input:\n{task.get('input') or NO_INPUT}\n"
            f"{number}. Output:\n{task['output']}\n"
        )
    parts.append(f"###\n{len(tasks) + 1}. Instruction:")
    return "".join(parts)


def load_header(name: str, num_tasks: int) -> str:
    """Return a header's text: a shipped one by name, or a file's, with ``{num_tasks}`` filled in.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    path = Path(name).expanduser()
    if name in SHIPPED_HEADERS:
        path = Path(__file__).parent.parent / "data" / f"prompt_{name}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"--prompt_header {name}: {reason}; give full, short or a text file") from error
    return text.replace("{num_tasks}", str(num_tasks))


def eligible_seeds(
    seeds: Sequence[Mapping[str, Any]], *, examples: int, max_words: int | None
) -> list[Mapping[str, Any]]:
    """Return the seed tasks that may serve as examples: all, or those of at most ``max_words`` words in all fields.

    Raises:
        DataError: fewer remain than a prompt shows.
    """
    found = [task for task in seeds if max_words is None or _words(task) <= max_words]
    if len(found) < examples:
        limit = f" of at most {max_words} words (--max_example_words)" if max_words is not None else ""
        raise DataError(f"--num_prompt_instructions {examples}: there are only {len(found)} seed tasks{limit}")
    return found


def _words(task: Mapping[str, Any]) -> int:
    return sum(len(str(task.get(field) or "").split()) for field in ("instruction", "input", "output"))
