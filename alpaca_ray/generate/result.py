"""What a run leaves behind: its figures, its files, and its last words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.errors import GenerationError
from alpaca_ray.generate.account import Tally
from alpaca_ray.generate.budget import Price, Tokens
from alpaca_ray.generate.claim import Claim
from alpaca_ray.generate.folder import (
    METRICS,
    RECORDS,
    REJECTED,
    STAGE,
    FolderState,
    earlier_price,
    write_results,
)
from alpaca_ray.generate.process import Processor
from alpaca_ray.generate.prompt import SHIPPED_HEADERS
from alpaca_ray.generate.run import Plan, shown
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.manifest import FILE_NAME as MANIFEST
from alpaca_ray.manifest import describe_inputs, write_manifest
from alpaca_ray.records import source_path
from alpaca_ray.report.outputs import LEDGER as REPORT_FILES


def cost(price: Price | None, spent: Tokens, counted: Tokens) -> dict[str, Any]:
    """Return what a run cost at most.

    Args:
        spent: every token that may have to be paid for.
        counted: those of them that the endpoint counted itself.
    """
    uncertain = spent - counted
    return {
        "total": None if price is None else round(price.cost(spent), 6),
        "currency": "USD",
        "price_per_million": None if price is None else [price.prompt, price.completion],
        "tokens_at_most": spent.total,
        "uncertain_tokens": uncertain.total,
    }


class Result:
    """The files of a run, and how they are marked as complete."""

    def __init__(
        self, plan: Plan, teachers: Sequence[Teacher], claim: Claim, state: FolderState, processor: Processor
    ) -> None:
        self.plan = plan
        self.folder = claim.folder
        self._claim = claim
        self.processor = processor
        self._teachers = teachers
        self._initial = len(state.initial)
        self._price = plan.price(teachers) or (earlier_price(claim.folder) if plan.settings.replay else None)
        header = plan.settings.prompt_header
        read = [source_path(plan.settings.seed_tasks_path), *([] if header in SHIPPED_HEADERS else [header])]
        self._inputs = describe_inputs(read)  # now: at the end they may be others

    def metrics(self, tally: Tally, spent: Tokens, seconds: float) -> dict[str, Any]:
        """Return what ``metrics.json`` holds."""
        return {
            **tally.metrics(),
            **self.processor.counts(),
            "initial": self._initial,
            "total": len(self.processor.records),
            "target": self.plan.settings.num_instructions_to_generate,
            "cost": cost(self._price, spent, tally.tokens),
            "seconds": round(seconds, 3),
        }

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Replace the result files."""
        write_results(self.folder, self.processor.records, self.processor.rejected, metrics)
        self._claim.publish(RECORDS, REJECTED, METRICS)

    def finish(self, metrics: Mapping[str, Any], exhausted: str | None) -> None:
        """Say what came of it, and write ``run.json``.

        Args:
            exhausted: flag of the budget that ended the run.

        Raises:
            GenerationError: the target was not reached, and no budget of the user's is why.
        """
        settings = self.plan.settings
        say(
            f"kept {metrics['kept']} of {metrics['entries']} entries in {metrics['requests']} requests; rejected: "
            f"{shown(metrics['rejected'])}"
        )
        tokens = metrics["tokens"]
        estimated = f"; up to {tokens['estimated']:,} more where no count came" if tokens["estimated"] else ""
        say(f"tokens: {tokens['prompt']:,} in prompts, {tokens['completion']:,} in answers{estimated}{_paid(metrics)}")
        if metrics["requests"] > self.processor.next_id:
            extra = metrics["requests"] - self.processor.next_id
            say(f"{extra} answers came beyond the target: they wait in the journal for a higher one")
        if self.processor.warning:
            say(self.processor.warning)
        if (self.folder / REPORT_FILES).is_file():
            say(f"warning: the report in {self.folder} is of earlier records: jobs/report.py makes it anew")
        if not self.processor.done:
            short = (
                f"{metrics['total']} of {metrics['target']} instructions after {metrics['requests']} requests "
                f"(rejected: {shown(metrics['rejected'])})"
            )
            if exhausted is None and settings.max_requests is not None:
                exhausted = "--max_requests"
            if settings.replay:
                say(f"went through the journal: {short}; --resume goes on asking")
            elif exhausted is None or not metrics["total"]:
                raise GenerationError(
                    f"stopped with {short}: look into {self.folder / REJECTED}; --resume with "
                    f"{'a higher ' + exhausted if exhausted else '--max_requests'} goes on"
                )
            else:
                room = "" if exhausted == "--max_requests" else " (what is left is less than a request may take)"
                say(f"stopped at {exhausted}{room} with {short}; --resume with a higher one goes on")
        write_manifest(
            self.folder,
            STAGE,
            settings=settings.to_dict(),
            inputs=self._inputs,
            data_file=RECORDS,
            outputs=[RECORDS, REJECTED, METRICS],
            seed=settings.seed,
            teacher=self.plan.answer_settings(self._teachers),
            complete=self.processor.done,
            records={name: metrics[name] for name in ("initial", "kept", "total", "target")},
        )
        self._claim.publish(MANIFEST)
        say(f"result: {self._claim.where(RECORDS)}")


def _paid(metrics: Mapping[str, Any]) -> str:
    total = metrics["cost"]["total"]
    return "" if total is None else f"; cost: {total:.4f} US dollars at most"
