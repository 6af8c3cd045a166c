"""What a run cost and what became of its entries, read from ``metrics.json`` as far as it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alpaca_ray.report.metrics import Cost, Metrics, Tokens
from alpaca_ray.report.source import Source


@dataclass(frozen=True)
class Account:
    """Totals of a run. What ``metrics.json`` does not say is None, 0 or empty.

    ``outcomes`` starts with ``kept``, then rejected entries by reason; ``failures`` are failed attempts by kind; both
    are (name, count), most common first. ``cost`` is in US dollars, ``seconds`` wall-clock time. ``uncertain_tokens``
    were sent or received without an answer that counted them, and are in ``cost`` at their most.
    """

    kept: int = 0
    outcomes: Sequence[tuple[str, int]] = field(default_factory=list)
    failures: Sequence[tuple[str, int]] = field(default_factory=list)
    requests: int | None = None
    failed: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    uncertain_tokens: int = 0
    seconds: float | None = None
    threshold: float | None = None
    rejected_scores: Sequence[float] = field(default_factory=list)

    @property
    def entries(self) -> int:
        """Entries that came, kept and rejected together; 0 where no account was kept."""
        return sum(count for _, count in self.outcomes)

    @property
    def tokens(self) -> int:
        """Tokens that the teacher read and wrote."""
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)

    @property
    def cost_label(self) -> str:
        """What ``cost`` is."""
        return "cost at most" if self.uncertain_tokens else "cost"

    @staticmethod
    def money(dollars: float) -> str:
        """Return an amount with as many digits as it needs to say something."""
        return f"${dollars:,.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.4f}"

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) for a table; what is not known is left out."""
        found: list[tuple[str, str]] = []
        if self.cost is not None:
            found.append((self.cost_label, self.money(self.cost)))
            if self.kept:
                found.append(("cost of 1,000 kept records", self.money(1000 * self.cost / self.kept)))
        numbers = (
            ("requests", self.requests),
            ("requests that never succeeded", self.failed),
            ("prompt tokens", self.prompt_tokens),
            ("completion tokens", self.completion_tokens),
            ("further tokens at most, not counted by any answer", self.uncertain_tokens or None),
        )
        found += [(name, f"{value:,}") for name, value in numbers if value is not None]
        if self.tokens and self.kept:
            found.append(("tokens a kept record", f"{self.tokens / self.kept:,.0f}"))
        if self.seconds is not None:
            found.append(("time", _duration(self.seconds)))
            if self.seconds and self.kept:
                found.append(("kept records a minute", f"{60 * self.kept / self.seconds:,.1f}"))
        return found


def account_of(source: Source) -> Account:
    """Return the account of a folder's run; an empty one where the records came without."""
    metrics = source.metrics or Metrics()
    tokens, cost = metrics.tokens or Tokens(), metrics.cost or Cost()
    rejected = _counts(source.rejected)
    kept = metrics.kept
    if kept is None:
        kept = len(source.records) if rejected else 0
    return Account(
        kept=kept,
        outcomes=[("kept", kept), *rejected] if rejected or metrics.kept is not None else [],
        failures=_counts(metrics.errors or {}),
        requests=metrics.requests,
        failed=metrics.failed,
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cost=cost.total,
        uncertain_tokens=cost.uncertain_tokens,
        seconds=metrics.seconds,
        threshold=source.threshold,
        rejected_scores=source.rejected_scores,
    )


def _counts(values: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return what there was at all, most common first."""
    return sorted([entry for entry in values.items() if entry[1]], key=lambda entry: (-entry[1], entry[0]))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
