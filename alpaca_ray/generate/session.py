"""One session of a run: requests through Ray Data, one ledger, one decision maker in the driver."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpaca_ray.console import say
from alpaca_ray.errors import ClusterError, GenerationError, TeacherError, find_cause
from alpaca_ray.generate.account import Pace, Progress, Status, Tally
from alpaca_ray.generate.briefs import Briefs
from alpaca_ray.generate.bucket import mirror_of
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.claim import Claim
from alpaca_ray.generate.fanout import client_count, client_placement, ledger_calls
from alpaca_ray.generate.folder import FolderState, earlier_metric
from alpaca_ray.generate.journal import FILE_NAME as JOURNAL
from alpaca_ray.generate.journal import Journal, read_journal
from alpaca_ray.generate.ledger import Ledger
from alpaca_ray.generate.process import Processor
from alpaca_ray.generate.result import Result
from alpaca_ray.generate.rounds import Rounds
from alpaca_ray.generate.run import Plan
from alpaca_ray.generate.sent import FILE_NAME as SENT
from alpaca_ray.generate.sent import read_lost
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.generate.terms import Delivery, StopKind, Terms
from alpaca_ray.signals import interrupts_later

_FURTHEST_AHEAD = 65536  # requests beyond the one that is needed next: those that come early wait in memory
_TAKE_SECONDS = 1.0
_JOIN_SECONDS = 10.0
_CHECKPOINT_SECONDS = 10.0
_CHECKPOINT_SHARE = 20  # results are written again after this many times as long as writing them took
_MIN_FAILED_IN_A_ROW = 20
_ANSWERS = (None, "refusal", "no_text")  # errors of outcomes for which the teacher did answer
_LEDGER_DIED = "the process that writes the journal has died: go on with --resume"


class Session:
    """One session: asks until the target is reached, and writes what came of it, whatever happens."""

    def __init__(
        self, plan: Plan, teachers: Sequence[Teacher], claim: Claim, state: FolderState, processor: Processor
    ) -> None:
        settings = plan.settings
        self.plan = plan
        self.settings = settings
        self.teachers = teachers
        self.local = teachers[0].local
        self.claim = claim
        self.state = state
        self.processor = processor
        self.result = Result(plan, teachers, claim, state, processor)
        self.terms: Terms = plan.terms(state, teachers, os.environ)
        self.tally = Tally()
        self.tally.add(state.outcomes)
        self.tally.failed_in_a_row = 0  # those of an earlier session say nothing about this one's teacher
        self.pace = Pace(expected=plan.expected_yield())
        self.pace.add(processor.kept, requests=processor.next_id)
        size = settings.request_batch_size
        self.progress = Progress(size, say, done=-(-processor.next_id // size))
        self.status = Status(
            say,
            target=settings.num_instructions_to_generate,
            kept=len(processor.records),
            price=self.terms.limits.price,
            max_cost=settings.max_cost,
        )
        self.briefs = Briefs(plan.prompts, processor)
        self.clients = client_count(settings.max_in_flight, settings.num_clients)
        self.limit = plan.request_limit(state)
        self.recorded = state.outcomes.ids
        self.first = next(number for number in range(len(self.recorded) + 1) if number not in self.recorded)
        self.highest = self.first
        self.started = self.heard = time.monotonic()
        self.opened = False
        self.earlier = 0.0
        self.written_at, self.writing = self.started, 0.0
        self.allowed = self.first
        self.seen = 0  # outcomes of this session that have come from the ledger
        self.spent, self.reserved = self.terms.spent, Tokens()
        self.exhausted: str | None = None
        self.ledger: Any = None

    def go(self) -> None:
        """Run to the end, and write the results and ``run.json``."""
        failure: BaseException | None = None
        try:
            if not (self.processor.done or self.settings.replay):
                self.terms.admission()  # finds here, and not in another process, what it cannot write
                self.ledger = _start_ledger(
                    self.terms, self.recorded, ledger_calls(self.settings.max_in_flight, self.clients)
                )
                # A budget must know of requests that a kill cuts off, from the first one on; and a bucket is worth
                # trying before anything is paid for.
                if self.terms.limits.any or self.claim.bucket is not None:
                    self._open()
                self._ask()
            if not self.opened:
                self._open()
        except BaseException as error:
            failure = error
            raise
        finally:
            if self.ledger is not None:
                self._settle()
                ray.kill(self.ledger)
            self.progress.flush()
            if self.opened and failure is not None and self._nothing_came(failure):
                self.claim.undo()
            elif self.opened:
                self._write()
                if self.claim.put_aside:
                    say(f"no answer came: the run that --overwrite replaces is kept in {self.claim.put_aside}")
                if isinstance(failure, KeyboardInterrupt | SystemExit):
                    say(f"stopped with {len(self.processor.records)} instructions kept: --resume goes on")
        self.result.finish(self._metrics(), self.exhausted)

    def _ask(self) -> None:
        self.rounds = Rounds(
            self.first,
            self.limit,
            clients=self.clients,
            max_in_flight=self.settings.max_in_flight,
            placement=client_placement(self.teachers),
            border=self.briefs.period,
        )
        arguments: dict[str, Any] = {
            "ledger": self.ledger,
            "prompts": self.plan.prompts,
            "teachers": list(self.teachers),
            "sampling": {api: self.plan.sampling(api) for api in sorted({one.api for one in self.teachers})},
            "environ": {teacher.key_env: teacher.key(os.environ) for teacher in self.teachers},
            # A teacher that is started here is as slow as this machine: to give up and ask again would never end.
            "timeout": None if self.local else self.settings.request_timeout,
            "max_retries": self.settings.max_retries,
        }
        try:
            while not (self.processor.done or self.exhausted):
                needed = self.pace.needed(self.processor.missing)
                arguments["answered"] = self.tally.requests > self.tally.failed
                self.rounds.extend(arguments, needed=needed, answers=self.seen, highest=self.highest)
                self._allow()
                delivery = self._take(_TAKE_SECONDS)
                self._process()
                if not delivery.outcomes and not self.rounds.running:
                    break
            # A local teacher's answers cost nothing but time: what is still under way is not waited for.
            self._end("drop" if self.local else "drain")
        except BaseException as error:
            try:
                ray.get(self.ledger.stop.remote("drop"))
            except RayActorError:
                if isinstance(error, Exception) and find_cause(error) is None:  # the clients met its end first
                    raise ClusterError(_LEDGER_DIED) from error
            self.rounds.join(_JOIN_SECONDS)
            raise
        self.rounds.check()
        if not (self.processor.done or self.exhausted) and self.processor.next_id < self.limit:
            raise GenerationError(f"no outcome of request {self.processor.next_id} came back: go on with --resume")

    def _end(self, kind: StopKind) -> None:
        if self.processor.done or self.exhausted:
            ray.get(self.ledger.stop.remote(kind))
        while self.rounds.running:
            self._take(_TAKE_SECONDS)
        self._take(0.0)
        self._process()

    def _take(self, timeout: float) -> Delivery:
        """Take what the ledger has, count it, and hand it to the decision maker."""
        try:
            delivery: Delivery = ray.get(self.ledger.take.remote(self.seen, timeout))
        except RayActorError as error:
            raise ClusterError(_LEDGER_DIED) from error
        if delivery.wants_file and not self.opened:
            self._open()
        self._count(delivery)
        self.status.note(
            kept=len(self.processor.records),
            requests=self.tally.requests,
            under_way=delivery.under_way,
            spent=self.spent,
            failures=delivery.failures,
            trouble=delivery.trouble,
        )
        if delivery.error is not None:
            raise delivery.error
        self._check_progress(delivery)
        return delivery

    def _nothing_came(self, failure: BaseException) -> bool:
        """Whether neither this session nor an earlier one had an answer, or anything to pay for."""
        if self.state.header is not None or self.tally.requests:
            return False
        # The only endpoint refuses the key or the model: what else is under way there is refused as well.
        refused = isinstance(find_cause(failure), TeacherError) and len(self.teachers) == 1
        return refused or not read_lost(self.claim.folder / SENT, ()).total

    def _check_progress(self, delivery: Delivery) -> None:
        """Stop a run that gets nowhere."""
        where = ", ".join(teacher.base_url for teacher in self.teachers)
        if self.tally.failed_in_a_row >= max(_MIN_FAILED_IN_A_ROW, self.settings.max_in_flight):
            raise GenerationError(
                f"the last {self.tally.failed_in_a_row} requests to {where} all failed ({self.tally.last_error}): "
                "go on with --resume when the teacher answers again"
            )
        silent = time.monotonic() - self.heard
        if silent > self.settings.patience() and not self.local:
            raise GenerationError(
                f"no answer from {where} for {silent:.0f} s (--stall_timeout), {delivery.under_way} requests under way"
                f"{'; last trouble: ' + delivery.trouble if delivery.trouble else ''}: go on with --resume when the "
                "teacher answers again"
            )

    def _count(self, delivery: Delivery) -> None:
        if any(outcome.error in _ANSWERS for outcome in delivery.outcomes):
            self.heard = time.monotonic()
        if delivery.outcomes:
            self.highest = max(self.highest, *(outcome.request_id for outcome in delivery.outcomes))
        with interrupts_later():  # one in between would leave answers out that count as seen
            self.seen += len(delivery.outcomes)
            self.tally.add(delivery.outcomes)
            self.processor.offer(delivery.outcomes)
        self.spent, self.reserved = delivery.spent, delivery.reserved
        self.exhausted = delivery.exhausted
        for note in delivery.notes:
            say(note)

    def _settle(self) -> None:
        """Close the journal, and take what it got since the last look: results show all that was paid for."""
        try:
            ray.get(self.ledger.close.remote())
            self._count(ray.get(self.ledger.take.remote(self.seen, 0.0)))
        except RayActorError:  # an interrupt reaches it too: what it had taken is on the disk, or never counted
            if self.opened:
                written = read_journal(self.claim.folder / JOURNAL).outcomes
                new = [outcome for outcome in written if not self.processor.knows(outcome.request_id)]
                self.tally.add(new)
                self.processor.offer(new)
        self._process()

    def _process(self) -> None:
        while self.processor.next_outcome() is not None:
            before = time.perf_counter()
            with interrupts_later():  # one in the middle of an answer would leave it half processed
                steps = list(self.processor.steps())
            seconds = (time.perf_counter() - before) / len(steps)
            for outcome, step in steps:
                self.pace.add(step.kept)
                self.progress.add(outcome, step, seconds)
        now = time.monotonic()
        if self.opened and now - self.written_at > max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * self.writing):
            self._write()

    def _allow(self) -> None:
        """Let so many requests go as the missing records will probably take; a local teacher's cost nothing."""
        needed = _FURTHEST_AHEAD if self.local else min(_FURTHEST_AHEAD, self.pace.needed(self.processor.missing))
        limit = min(self.processor.next_id + needed, self.rounds.next_start, self.briefs.known_up_to())
        if limit > self.allowed:
            new = (number for number in range(self.allowed, limit) if number not in self.recorded)
            briefs = self.briefs.of(new)
            self.allowed = limit
            self.ledger.allow.remote(limit, briefs)

    def _open(self) -> None:
        """Open the folder: as a rule only when a first answer is there, so that bad input never touches it."""
        self.claim.open()
        self.opened = True  # already: the journal may hold answers before the call that opens it has returned
        self.earlier = earlier_metric(self.claim.folder, "seconds") or 0.0
        if self.ledger is not None:
            header = self.plan.journal_header(self.state, self.teachers)
            ray.get(self.ledger.open.remote(self.claim.folder, header, self.claim.bucket))
        elif self.settings.replay:
            written = Journal(self.claim.folder / JOURNAL, mirror_of(self.claim.bucket, JOURNAL))
            written.write_settings(self.plan.answer_settings(self.teachers))
            written.close()

    def _write(self) -> None:
        before = time.monotonic()
        self.result.write(self._metrics())
        if self.tally.requests > self.tally.failed:
            self.claim.settle()
        self.written_at = time.monotonic()
        self.writing = self.written_at - before

    def _metrics(self) -> dict[str, Any]:
        seconds = self.earlier + time.monotonic() - self.started
        return self.result.metrics(self.tally, self.spent + self.reserved, seconds)


def _start_ledger(terms: Terms, recorded: frozenset[int], calls: int) -> Any:
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(Ledger)
        .options(
            num_cpus=0,
            max_concurrency=calls,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=here, soft=False),
        )
        .remote(terms, recorded)
    )
