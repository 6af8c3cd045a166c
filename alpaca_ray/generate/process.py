"""The sequential decision maker: answers in the order of their request numbers, entry by entry.

Everything that decides what ``regen.json`` holds is here and below, and depends on the answers alone: not on when
they came, nor on how many were under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alpaca_ray.generate.filters import reason_to_reject
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.parse import Entry, parse_answer
from alpaca_ray.novelty.filter import Decision, NoveltyFilter
from alpaca_ray.novelty.rejected import REASONS, rejected_row

Record = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What one answer brought. ``generated`` counts entries that passed the filters, as the original's line does."""

    generated: int
    kept: int


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
        seeds: Sequence[Mapping[str, Any]],
        initial: Sequence[Record],
        target: int,
        first_number: int,
        threshold: float,
        workers: int = -1,
    ) -> None:
        self.records: list[Record] = list(initial)
        self.rejected: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        self.next_id = 0
        self._initial = len(initial)
        self._target = target
        self._first_number = first_number
        self._waiting: dict[int, Outcome] = {}
        known = [str(task["instruction"]) for task in [*seeds, *initial]]
        self._novelty = NoveltyFilter(known, threshold=threshold, workers=workers)

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

    def step(self) -> Step:
        """Process the next outcome. Stops at the very entry that reaches the target: the rest stays in the journal."""
        outcome = self._waiting.pop(self.next_id)
        self.next_id += 1
        if outcome.text is None:
            return Step(0, 0)
        entries = parse_answer(outcome.text, first_number=self._first_number, finish_reason=outcome.finish_reason)
        reasons = [reason_to_reject(entry) for entry in entries]
        decisions = iter(
            self._novelty.decide(
                entry.instruction for entry, reason in zip(entries, reasons, strict=True) if not reason
            )
        )
        generated, before = 0, len(self.records)
        for number, (entry, reason) in enumerate(zip(entries, reasons, strict=True)):
            if self.done:
                break
            if reason is not None:
                self._reject(outcome.request_id, number, entry, reason)
                continue
            generated += 1
            decision = next(decisions)
            if decision.keep:
                self.records.append(_record(entry, decision))
            else:
                self._reject(outcome.request_id, number, entry, "too_similar", decision)
        return Step(generated, len(self.records) - before)

    def counts(self) -> dict[str, Any]:
        """Return the account: entries attempted = kept + the sum of rejected."""
        return {
            "entries": self.kept + len(self.rejected),
            "kept": self.kept,
            "rejected": {reason: self.reasons[reason] for reason in REASONS if self.reasons[reason]},
        }

    def _reject(
        self, request_id: int, number: int, entry: Entry, reason: Any, decision: Decision | None = None
    ) -> None:
        nearest = next(iter(decision.most_similar.items())) if decision else (None, None)
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
                most_similar=nearest[0],
                score=nearest[1],
            )
        )


def _record(entry: Entry, decision: Decision) -> Record:
    return {
        "instruction": entry.instruction,
        "input": entry.input,
        "output": entry.output,
        "most_similar_instructions": decision.most_similar,
        "avg_similarity_score": decision.average,
    }
