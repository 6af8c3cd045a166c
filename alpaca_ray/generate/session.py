"""One session of a run: rounds of requests through Ray Data, one ledger, one decision maker in the driver."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpaca_ray.console import say
from alpaca_ray.errors import ClusterError, GenerationError
from alpaca_ray.generate import journal
from alpaca_ray.generate.account import Pace, Progress, Tally, Waiting
from alpaca_ray.generate.claim import Claim
from alpaca_ray.generate.fanout import Round, client_count, client_placement, ledger_calls
from alpaca_ray.generate.folder import METRICS, RECORDS, REJECTED, STAGE, FolderState, earlier_seconds, write_results
from alpaca_ray.generate.ledger import Delivery, Ledger, StopKind
from alpaca_ray.generate.process import Processor
from alpaca_ray.generate.prompt import SHIPPED_HEADERS
from alpaca_ray.generate.run import Plan, request_ids, shown
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.manifest import write_manifest
from alpaca_ray.records import source_path
from alpaca_ray.storage import location

_LONGEST_ROUND = 4096  # rows of one Ray Data job: bounds what its driver keeps
_TAKE_SECONDS = 1.0
_JOIN_SECONDS = 10.0
_CHECKPOINT_SECONDS = 10.0
_CHECKPOINT_SHARE = 20  # results are written again after this many times as long as writing them took
_MIN_FAILED_IN_A_ROW = 20


class Session:
    """One session: asks until the target is reached, and writes what came of it, whatever happens."""

    def __init__(self, plan: Plan, teacher: Teacher, claim: Claim, state: FolderState, processor: Processor) -> None:
        self.plan = plan
        self.teacher = teacher
        self.claim = claim
        self.folder = claim.folder
        self.state = state
        self.settings = plan.settings
        self.processor = processor
        self.tally = Tally()
        self.tally.add(state.outcomes)
        self.tally.failed_in_a_row = 0  # those of an earlier session say nothing about this one's teacher
        self.pace = Pace(expected=plan.expected_yield())
        self.pace.add(processor.kept, requests=processor.next_id)
        size = self.settings.request_batch_size
        self.waiting = Waiting(say)
        self.progress = Progress(size, say, done=-(-self.processor.next_id // size))
        self.clients = client_count(self.settings.max_in_flight, self.settings.num_clients)
        self.limit = plan.request_limit(state)
        self.ids = request_ids(state)
        self.started = time.monotonic()
        self.opened = False
        self.stepping = False  # an interrupt in the middle of an answer leaves it half processed: nothing may follow
        self.earlier = 0.0
        self.written_at, self.writing = self.started, 0.0
        self.allowed = 0
        self.seen = 0  # outcomes of this session that have come from the ledger
        self.ledger: Any = None

    def go(self) -> None:
        """Run to the end, and write the results and ``run.json``."""
        try:
            if not self.processor.done:
                self.ledger = _start_ledger(ledger_calls(self.settings.max_in_flight, self.clients))
                self._ask()
            if not self.opened:
                self._open()
        finally:
            if self.ledger is not None:
                self._settle()
                ray.kill(self.ledger)
            self.progress.flush()
            if self.opened:
                self._write()
        self._finish()

    def _ask(self) -> None:
        while not self.processor.done:
            room = self.limit - self.tally.requests
            ids = list(itertools.islice(self.ids, max(0, min(room, self._round_size()))))
            if not ids:
                return
            self._round(ids)

    def _round_size(self) -> int:
        # Twice what seems needed: rows that are left over when the target is met have cost nothing.
        needed = 2 * max(self.pace.needed(self.processor.missing), self.settings.max_in_flight)
        return min(_LONGEST_ROUND, needed)

    def _round(self, ids: list[int]) -> None:
        arguments = {
            "ledger": self.ledger,
            "teacher": self.teacher,
            "sampling": self.plan.sampling(),
            "environ": {self.teacher.key_env: self.teacher.key(os.environ)},
            # A teacher that is started here is as slow as this machine: to give up and ask again would never end.
            "timeout": None if self.teacher.local else self.settings.request_timeout,
            "max_retries": self.settings.max_retries,
        }
        self._allow(ids)
        round_ = Round(
            [self.plan.prompts.make(number) for number in ids],
            self.clients,
            arguments,
            self.settings.max_in_flight,
            client_placement(self.teacher),
        )
        try:
            left = len(ids)
            while left and not self.processor.done:
                delivery = self._take(_TAKE_SECONDS)
                if not delivery.outcomes and not round_.running:
                    break
                left -= len(delivery.outcomes)
                self._process()
                self._allow(ids)
            # A local teacher's answers cost nothing but time: what is still under way is not waited for.
            self._end(round_, "drop" if self.teacher.local else "drain")
        except BaseException:
            with suppress(RayActorError):
                ray.get(self.ledger.stop.remote("drop"))
            round_.join(_JOIN_SECONDS)
            raise
        if round_.error is not None:
            raise round_.error
        if not self.processor.done and self.processor.next_id <= ids[-1]:
            raise GenerationError(f"no outcome of request {self.processor.next_id} came back: go on with --resume")

    def _end(self, round_: Round, kind: StopKind) -> None:
        if self.processor.done:
            ray.get(self.ledger.stop.remote(kind))
        while round_.running:
            self._take(_TAKE_SECONDS)
        self._take(0.0)

    def _take(self, timeout: float) -> Delivery:
        """Take what the ledger has, count it, and hand it to the decision maker."""
        try:
            delivery: Delivery = ray.get(self.ledger.take.remote(self.seen, timeout))
        except RayActorError as error:
            raise ClusterError("the process that writes the journal has died: go on with --resume") from error
        if delivery.wants_file and not self.opened:
            self._open()
        self._count(delivery)
        self.waiting.note(
            new=len(delivery.outcomes),
            under_way=min(delivery.under_way, self.settings.max_in_flight),
            answers=self.tally.requests,
        )
        if delivery.error is not None:
            raise delivery.error
        if self.tally.failed_in_a_row >= max(_MIN_FAILED_IN_A_ROW, self.settings.max_in_flight):
            raise GenerationError(
                f"the last {self.tally.failed_in_a_row} requests to {self.teacher.base_url} all failed "
                f"({self.tally.last_error}): go on with --resume when the teacher answers again"
            )
        return delivery

    def _count(self, delivery: Delivery) -> None:
        self.seen += len(delivery.outcomes)
        self.tally.add(delivery.outcomes)
        self.processor.offer(delivery.outcomes)

    def _settle(self) -> None:
        """Close the journal, and take what it got since the last look: results show all that was paid for."""
        with suppress(RayActorError):  # what it had taken is on the disk, or was never acknowledged
            ray.get(self.ledger.close.remote())
            self._count(ray.get(self.ledger.take.remote(self.seen, 0.0)))
            if not self.stepping:
                self._process()

    def _process(self) -> None:
        while (outcome := self.processor.next_outcome()) is not None:
            before = time.perf_counter()
            self.stepping = True
            step = self.processor.step()
            self.stepping = False
            self.pace.add(step.kept)
            self.progress.add(outcome, step, time.perf_counter() - before)
        now = time.monotonic()
        if self.opened and now - self.written_at > max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * self.writing):
            self._write()

    def _allow(self, ids: list[int]) -> None:
        """Let so many requests go as the missing records will probably take; a local teacher's cost nothing."""
        if self.teacher.local:
            limit = ids[-1] + 1
        else:
            limit = self.processor.next_id + self.pace.needed(self.processor.missing)
        if limit > self.allowed:
            self.allowed = limit
            self.ledger.allow.remote(limit)

    def _open(self) -> None:
        """Open the folder: only now, when a first answer is there, so that bad input never touches it."""
        self.claim.open()
        self.earlier = earlier_seconds(self.folder)
        if self.ledger is not None:
            header = self.plan.journal_header(self.state, self.teacher)
            ray.get(self.ledger.open.remote(self.folder / journal.FILE_NAME, header))
        self.opened = True

    def _write(self) -> None:
        before = time.monotonic()
        write_results(self.folder, self.processor.records, self.processor.rejected, self._metrics())
        self.written_at = time.monotonic()
        self.writing = self.written_at - before

    def _metrics(self) -> dict[str, Any]:
        return {
            **self.tally.metrics(),
            **self.processor.counts(),
            "initial": len(self.state.initial),
            "total": len(self.processor.records),
            "target": self.settings.num_instructions_to_generate,
            "seconds": round(self.earlier + time.monotonic() - self.started, 3),
        }

    def _finish(self) -> None:
        metrics = self._metrics()
        say(
            f"kept {metrics['kept']} of {metrics['entries']} entries in {metrics['requests']} requests; rejected: "
            f"{shown(metrics['rejected'])}"
        )
        if not self.processor.done:
            short = (
                f"{metrics['total']} of {metrics['target']} instructions after {metrics['requests']} requests "
                f"(rejected: {shown(metrics['rejected'])})"
            )
            if self.settings.max_requests is None or not metrics["total"]:
                raise GenerationError(
                    f"stopped with {short}: look into {self.folder / REJECTED}; --resume with --max_requests goes on"
                )
            say(f"stopped at --max_requests with {short}")
        write_manifest(
            self.folder,
            STAGE,
            settings=self.settings.to_dict(),
            inputs=self._inputs(),
            data_file=RECORDS,
            outputs=[RECORDS, REJECTED, METRICS],
            seed=self.settings.seed,
            teacher=self.plan.answer_settings(self.teacher),
            complete=self.processor.done,
            records={name: metrics[name] for name in ("initial", "kept", "total", "target")},
        )
        say(f"result: {location(self.folder / RECORDS)}")

    def _inputs(self) -> list[str]:
        header = self.settings.prompt_header
        return [source_path(self.settings.seed_tasks_path), *([] if header in SHIPPED_HEADERS else [header])]


def _start_ledger(calls: int) -> Any:
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Ledger)
        .options(
            num_cpus=0,
            max_concurrency=calls,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=here, soft=False),
        )
        .remote()
    )
