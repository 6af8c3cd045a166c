"""The sequential decision maker: answers in the order of their request numbers, entry by entry.

Everything that decides what ``regen.json`` holds is here and below, and depends on the answers alone: not on when
they came, nor on how many were under way.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alpaca_ray.generate.answers import AnswerReader
from alpaca_ray.generate.entry import Entry
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.store import RowStore
from alpaca_ray.novelty.filter import Decision
from alpaca_ray.novelty.rejected import REASONS, Reason, rejected_row

Record = dict[str, Any]


class Novelty(Protocol):
    """Decides instruction by instruction; what is kept joins the pool (see ``NoveltyFilter``)."""

    @property
    def warning(self) -> str | None:
        """What a person should hear of instructions that could not be compared."""
        ...

    def decide(self, candidates: Iterable[str], /) -> Iterable[Decision]:
        """Yield a decision for each candidate, as if they came one by one."""
        ...


class Decontaminator(Protocol):
    """Knows the prompts of evaluation sets."""

    def nearest(self, instruction: str, input: str, /) -> tuple[str, float] | None:
        """Return the prompt that a record is too near to, with the similarity; None where there is none."""
        ...


@dataclass(frozen=True)
class Step:
    """What one answer brought. ``generated`` counts entries that passed the filters, as the original's line does."""

    generated: int
    kept: int


@dataclass(frozen=True)
class _Read:
    """An entry of an answer, why it is dropped before novelty is asked, and the evaluation prompt it is too near to."""

    entry: Entry
    reason: Reason | None
    near: tuple[str, float] | None

    @property
    def is_candidate(self) -> bool:
        return self.reason is None and self.near is None


class Processor:
    """Turns outcomes into kept records and rejected rows until the target is reached.

    Attributes:
        records: what ``regen.json`` holds: the records that were there before, then the new ones in order.
        rejected: rows for ``rejected.jsonl``.
        next_id: number of the request whose outcome is needed next.
    """

    def __init__(
        self,
        *,
        records: RowStore,
        rejected: RowStore,
        target: int,
        reader: AnswerReader,
        novelty: Novelty,
        decontaminator: Decontaminator | None = None,
    ) -> None:
        """Make a processor.

        Args:
            records: holds what ``regen.json`` held before, which counts towards ``target``; kept records join it.
            rejected: takes rows for ``rejected.jsonl``.
            novelty: knows the instructions of the seed tasks and of ``records`` already.
        """
        self.records = records
        self.rejected = rejected
        self.reasons: Counter[str] = Counter()
        self.next_id = 0
        self._initial = len(records)
        self._target = target
        self._reader = reader
        self._novelty = novelty
        self._decontaminator = decontaminator
        self._waiting: dict[int, Outcome] = {}
        self._sizes = array("Q", [len(records)])  # of the pool before each request, and now

    @property
    def done(self) -> bool:
        """Whether the target is reached."""
        return len(self.records) >= self._target

    @property
    def missing(self) -> int:
        """How many instructions are still to be made."""
        return max(0, self._target - len(self.records))

    @property
    def kept(self) -> int:
        """How many records this run's answers brought."""
        return len(self.records) - self._initial

    def offer(self, outcomes: Iterable[Outcome]) -> None:
        """Take outcomes in any order; they wait until every earlier one has been processed."""
        self._waiting.update(
            (outcome.request_id, outcome) for outcome in outcomes if outcome.request_id >= self.next_id
        )

    def next_outcome(self) -> Outcome | None:
        """Return the outcome that is to be processed next, or None where it has not come or nothing is missing."""
        return None if self.done else self._waiting.get(self.next_id)

    @property
    def ready(self) -> int:
        """How many outcomes have been offered and not been processed."""
        return len(self._waiting)

    def knows(self, request_id: int) -> bool:
        """Whether the outcome of a request has been offered."""
        return request_id < self.next_id or request_id in self._waiting

    def process(self) -> None:
        """Process whatever can be."""
        while self.next_outcome() is not None:
            for _ in self.steps():
                pass

    def records_before(self, request_id: int) -> int:
        """Return how many records there were when exactly the requests below ``request_id`` had been processed.

        Raises:
            IndexError: they have not all been processed yet.
        """
        return self._sizes[request_id]

    def steps(self, most: int = 256) -> Iterator[tuple[Outcome, Step]]:
        """Process the next outcomes, at most so many, and yield each with what it brought.

        All of their instructions are compared with the pool at once. Stops at the very entry that reaches the target:
        the rest stays in the journal. A caller must not stop in the middle.
        """
        outcomes: list[Outcome] = []
        while not self.done and len(outcomes) < most and self.next_id + len(outcomes) in self._waiting:
            outcomes.append(self._waiting.pop(self.next_id + len(outcomes)))
        answers = [[] if outcome.text is None else self._read(outcome.text, outcome) for outcome in outcomes]
        candidates = [found.entry.instruction for answer in answers for found in answer if found.is_candidate]
        decisions = iter(self._novelty.decide(candidates))
        for place, (outcome, answer) in enumerate(zip(outcomes, answers, strict=True)):
            if self.done:
                self._waiting.update((later.request_id, later) for later in outcomes[place:])
                return
            self.next_id += 1
            step = self._take(outcome.request_id, answer, decisions)
            self._sizes.append(len(self.records))
            yield outcome, step

    def _read(self, text: str, outcome: Outcome) -> list[_Read]:
        read = self._reader.read(text, outcome.finish_reason)
        return [_Read(entry, reason, self._contamination(entry) if reason is None else None) for entry, reason in read]

    def _take(self, request_id: int, answer: Sequence[_Read], decisions: Iterator[Decision]) -> Step:
        generated, before = 0, len(self.records)
        for number, found in enumerate(answer):
            if self.done:
                break
            if found.reason is not None:
                self._reject(request_id, number, found.entry, found.reason)
                continue
            generated += 1
            if found.near is not None:
                self._reject(request_id, number, found.entry, "contaminated", *found.near)
                continue
            decision = next(decisions)
            if decision.keep:
                self.records.append(_record(found.entry, decision))
            else:
                self._reject(request_id, number, found.entry, "too_similar", *_nearest(decision))
        return Step(generated, len(self.records) - before)

    def _contamination(self, entry: Entry) -> tuple[str, float] | None:
        return self._decontaminator.nearest(entry.instruction, entry.input) if self._decontaminator else None

    @property
    def warning(self) -> str | None:
        """What a person should hear of instructions that could not be compared; None where there are none."""
        return self._novelty.warning

    def counts(self) -> dict[str, Any]:
        """Return the account: entries attempted = kept + the sum of rejected."""
        return {
            "entries": self.kept + len(self.rejected),
            "kept": self.kept,
            "rejected": {reason: self.reasons[reason] for reason in REASONS if self.reasons[reason]},
        }

    def _reject(
        self,
        request_id: int,
        number: int,
        entry: Entry,
        reason: Reason,
        most_similar: str | None = None,
        score: float | None = None,
    ) -> None:
        self.reasons[reason] += 1
        self.rejected.append(
            rejected_row(
                reason,
                request_id=request_id,
                entry=number,
                instruction=entry.instruction,
                input=entry.input,
                output=entry.output,
                text=entry.text if entry.problem else "",
                most_similar=most_similar,
                score=score,
            )
        )


def _nearest(decision: Decision) -> tuple[str | None, float | None]:
    return next(iter(decision.most_similar.items()), (None, None))


def _record(entry: Entry, decision: Decision) -> Record:
    record: Record = {"instruction": entry.instruction, "input": entry.input, "output": entry.output}
    if decision.most_similar or decision.average is not None:
        record["most_similar_instructions"] = decision.most_similar
    if decision.average is not None:
        record["avg_similarity_score"] = decision.average
    return record
