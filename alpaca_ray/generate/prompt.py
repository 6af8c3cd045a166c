"""The prompt of one request: a header, a few numbered examples, and the number of the task that is to follow.

The numbered form is stanford_alpaca's (``encode_prompt``); the header's words are ours. Examples from the pool beside
seed tasks are self-instruct's (arXiv 2212.10560).
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
from alpaca_ray.generate.entry import NO_INPUT
from alpaca_ray.generate.evolve import choose_operator, encode_evolve
from alpaca_ray.generate.json_form import encode_json, response_format

SHIPPED_HEADERS = ("full", "short")
_SPACE = re.compile(r"\s+")
_SEPARATOR = "###"
_TRIES = 8  # for each example from the pool


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
    """Makes the prompt of each request from its number alone, and from what is drawn from the pool of kept records.

    Attributes:
        header: text above the examples, placeholders already filled (but ``{operator}`` of a header for evolution).
        seeds: records that may serve as examples (``id``, ``instruction``, ``input``, ``output``).
        examples: how many a prompt shows, those from the pool included.
        seed: of the random choice.
        response_format: ``text`` or ``json_schema``.
        strategy: ``self_instruct`` or ``evolve``.
        machine: how many examples come from the pool once there are any.
        new_tasks: how many tasks a JSON answer is to hold.
        max_words: of a record that may serve as an example; seeds are chosen by it already.
    """

    header: str
    seeds: Sequence[Mapping[str, Any]]
    examples: int
    seed: int
    response_format: str = "text"
    strategy: str = "self_instruct"
    machine: int = 0
    new_tasks: int = 1
    max_words: int | None = None

    @property
    def draws(self) -> bool:
        """Whether prompts show records of the pool."""
        return self.strategy == "evolve" or self.machine > 0

    @property
    def first_number(self) -> int:
        """Number of the first task that an answer in text form holds."""
        return 1 if self.strategy == "evolve" else self.examples + 1

    def draw(self, request_id: int, pool: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the records of the pool that request ``request_id`` shows, small enough to be sent to a client.

        Their ``id`` is ``machine:`` and their place in the pool. There are fewer, or none, where the pool is small, or
        where chance prefers a seed task (evolution draws evenly from seeds and pool).
        """
        rng = random.Random(f"{self.seed}:machine:{request_id}")
        if self.strategy == "evolve":
            place = rng.randrange(len(self.seeds) + len(pool)) - len(self.seeds)
            places, wanted = ([place] if place >= 0 else []), 1
        else:
            # Looked for by chance: to find all that may serve would go through the whole pool for each request.
            places, wanted = rng.sample(range(len(pool)), min(len(pool), _TRIES * self.machine)), self.machine
        found = ((place, pool[place]) for place in places)
        return [_shown(record, place) for place, record in found if self._may_serve(record)][:wanted]

    def make(self, request_id: int, machine: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """Return the prompt of request ``request_id``.

        Args:
            machine: what ``draw`` returned; seed tasks take the places that it leaves.
        """
        # A string seeds through SHA-512, the same on every platform and version.
        rng = random.Random(f"{self.seed}:{request_id}")
        if self.strategy == "evolve":
            chosen = list(machine[:1]) or rng.sample(self.seeds, 1)
            text = encode_evolve(
                self.header, choose_operator(rng), chosen[0], as_json=self.response_format == "json_schema"
            )
        else:
            chosen = [*rng.sample(self.seeds, self.examples - len(machine)), *machine]
            if machine:
                rng.shuffle(chosen)
            if self.response_format == "json_schema":
                text = encode_json(self.header, chosen, self.new_tasks)
            else:
                text = encode(self.header, chosen)
        return Prompt(request_id, [str(task["id"]) for task in chosen], text)

    def answer_parameters(self) -> dict[str, Any]:
        """Return what a request needs for its answer to have the form that is wanted."""
        if self.response_format == "json_schema":
            return {"response_format": response_format(single=self.strategy == "evolve")}
        return {}

    def _may_serve(self, record: Mapping[str, Any]) -> bool:
        if self.strategy == "evolve":
            return True
        fits = self.max_words is None or _words(record) <= self.max_words
        return fits and (self.response_format != "text" or _SEPARATOR not in str(record.get("output")))


def _shown(record: Mapping[str, Any], place: int) -> dict[str, Any]:
    fields = {name: str(record.get(name) or "") for name in ("instruction", "input", "output")}
    return {"id": f"machine:{place}", **fields}


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


def load_header(
    name: str, num_tasks: int, new_tasks: int = 1, *, strategy: str = "self_instruct", response_format: str = "text"
) -> str:
    """Return a header's text: a shipped one by name, or a file's, with ``{num_tasks}`` and ``{new_tasks}`` filled in.

    Evolution and JSON answers have shipped headers of their own, which take the place of ``full`` and ``short``.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    path = Path(name).expanduser()
    if name in SHIPPED_HEADERS:
        form = "json" if response_format == "json_schema" else name
        path = Path(__file__).parent.parent / "data" / f"prompt_{'evolve' if strategy == 'evolve' else form}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"--prompt_header {name}: {reason}; give full, short or a text file") from error
    return text.replace("{num_tasks}", str(num_tasks)).replace("{new_tasks}", str(new_tasks))


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
