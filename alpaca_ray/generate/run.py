"""What a run is made of before anything is sent: every check that needs no network and writes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.generate.folder import FolderState, answer_settings, check_same, inspect
from alpaca_ray.generate.journal import Header
from alpaca_ray.generate.process import Processor
from alpaca_ray.generate.prompt import PromptMaker, eligible_seeds, load_header
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.records import Record, read_seed_tasks
from alpaca_ray.settings.generate import GenerateSettings

_REQUESTS_BEFORE_GIVING_UP = 100
_REQUESTS_PER_INSTRUCTION = 20


@dataclass(frozen=True)
class Plan:
    """Seeds and prompts of a run, the same for the same settings."""

    settings: GenerateSettings
    seeds: Sequence[Record]
    header: str
    prompts: PromptMaker

    def answer_settings(self, teacher: Teacher) -> dict[str, Any]:
        """Return what the answers depend on, for the journal's header and for ``run.json``."""
        return answer_settings(self.settings, teacher, self.header, self.seeds)

    def look_at(self, folder: Path, teacher: Teacher) -> FolderState:
        """Return what an output folder holds, where this run may use it (see ``folder.inspect`` for errors)."""
        state = inspect(folder, resume=self.settings.resume, overwrite=self.settings.overwrite)
        if state.header is not None:
            check_same(state.header, self.answer_settings(teacher), folder)
        return state

    def journal_header(self, state: FolderState, teacher: Teacher) -> Header | None:
        """Return the header that a new journal needs; None where there is one."""
        if state.header is not None:
            return None
        return Header(self.answer_settings(teacher), initial=len(state.initial))

    def processor(self, state: FolderState) -> Processor:
        """Return a decision maker that has gone through what the journal holds."""
        processor = Processor(
            seeds=self.seeds,
            initial=state.initial,
            target=self.settings.num_instructions_to_generate,
            first_number=self.settings.num_prompt_instructions + 1,
            threshold=self.settings.similarity_threshold,
            workers=self.settings.num_cpus or -1,
        )
        processor.offer(state.outcomes)
        while processor.next_outcome() is not None:
            processor.step()
        return processor

    def request_limit(self, state: FolderState) -> int:
        """Return after how many requests in all the run ends, target or not."""
        if self.settings.max_requests is not None:
            return self.settings.max_requests
        missing = self.settings.num_instructions_to_generate - len(state.initial)
        return _REQUESTS_BEFORE_GIVING_UP + _REQUESTS_PER_INSTRUCTION * max(0, missing)

    def expected_yield(self) -> float:
        """Return how many records a request may be expected to bring before any has come back."""
        return 0.5 * (self.settings.num_tasks_per_prompt - self.settings.num_prompt_instructions)

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameters of a request."""
        settings = self.settings
        return {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "stop": settings.stops() or None,
        }


def make_plan(settings: GenerateSettings) -> Plan:
    """Read the seed tasks and the prompt's header.

    Raises:
        DataError: either cannot be read, or there are too few seed tasks.
    """
    seeds = read_seed_tasks(settings.seed_tasks_path)
    header = load_header(settings.prompt_header, settings.num_tasks_per_prompt)
    examples = eligible_seeds(seeds, examples=settings.num_prompt_instructions, max_words=settings.max_example_words)
    prompts = PromptMaker(header, examples, settings.num_prompt_instructions, settings.seed)
    return Plan(settings, seeds, header, prompts)


def request_ids(state: FolderState) -> Iterator[int]:
    """Yield the request numbers that have no outcome in the journal, in order."""
    known = {outcome.request_id for outcome in state.outcomes}
    return (number for number in itertools.count() if number not in known)


def shown(rejected: Mapping[str, int]) -> str:
    """Return rejections by reason in one line."""
    return ", ".join(f"{reason} {count}" for reason, count in rejected.items()) or "none"
