"""The one place where requests are allowed and answers become durable.

A client pushes its wishes, is granted them within all limits, and hands every outcome to ``record``, which returns only
when it is on the disk. The driver takes outcomes from here, not from the map call: what is inside an unfinished call of
Ray Data would be lost with it, what is here is not. Knows no Ray; the session runs it as an actor on the driver's node.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alpaca_ray.errors import AlpacaRayError, OutputError
from alpaca_ray.generate.admission import NEVER, Failure, Grant, Want
from alpaca_ray.generate.bucket import Bucket, mirror_of
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.journal import FILE_NAME, Header, Journal, Outcome
from alpaca_ray.generate.sent import FILE_NAME as SENT_FILE
from alpaca_ray.generate.sent import SentLog
from alpaca_ray.generate.terms import Answer, Delivery, StopKind, Terms

_LONGEST_LEAD = 5.0


class Ledger:
    """Journal writer and gate. All methods run on one event loop."""

    def __init__(self, terms: Terms | None = None, recorded: Collection[int] = ()) -> None:
        """``recorded``: requests that have an outcome already."""
        terms = terms or Terms()
        self._admission = terms.admission()
        self._sent = SentLog()
        self._journal: Journal | None = None
        self._unwritten: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._untaken: list[Outcome] = []
        self._taken = 0
        self._recorded = set(recorded)
        self._holders: dict[int, str] = {}
        self._lost: defaultdict[int, list[Tokens]] = defaultdict(list)  # attempts that only an outcome would tell of
        self._briefs: dict[int, list[dict[str, Any]]] = {}
        self._outbox: defaultdict[str, list[Grant]] = defaultdict(list)
        self._stopping: StopKind | None = None
        self._error: AlpacaRayError | None = None
        self._trouble = ""
        self._failures = 0
        self._changed = asyncio.Condition()
        self._granted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._allowed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._flushing = asyncio.Lock()
        self._unannounced: list[tuple[str, Grant, Tokens]] = []
        self._announcing = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_exhausted = False

    # --- the driver's side

    async def open(self, folder: Path, header: Header | None, bucket: Bucket | None = None) -> None:
        """Open the run's files, the journal with a header where it is new, and write what has been waiting for it.

        Args:
            bucket: what ``folder`` is a copy of.
        """
        self._sent.open(folder / SENT_FILE, mirror_of(bucket, SENT_FILE))
        await self._flush_sent()  # the first that another run would meet
        self._journal = Journal(folder / FILE_NAME, mirror_of(bucket, FILE_NAME))
        if header is not None:
            self._journal.write_header(header)
        await self._write()

    async def allow(self, limit: int, briefs: Mapping[int, list[dict[str, Any]]] | None = None) -> None:
        """Let requests with numbers below ``limit`` be sent. ``briefs``: records that their prompts show."""
        self._briefs.update(briefs or {})
        if limit > self._admission.limit:
            self._admission.limit = limit
            self._allowed.set()
            self._allowed = asyncio.Event()
            self._pump()

    async def take(self, seen: int, timeout: float) -> Delivery:
        """Return what is new, waiting up to ``timeout`` seconds for something.

        Args:
            seen: how many outcomes the driver has had in all. What it was given and does not count, because it was
                interrupted before it got it, it is given again.
        """
        async with self._changed:
            del self._untaken[: seen - self._taken]
            self._taken = seen
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(self._has_news), timeout)
            notes, self._admission.notes = self._admission.notes, []
            self._told_exhausted = self._admission.exhausted is not None
            return Delivery(
                list(self._untaken),
                self._error,
                self._journal is None and bool(self._unwritten),
                self._admission.in_flight,
                self._admission.budget.spent,
                self._admission.budget.reserved,
                self._admission.exhausted,
                notes,
                self._trouble,
                self._failures,
            )

    async def stop(self, kind: StopKind) -> None:
        """Send nothing more; ``drain`` waits for what is under way, ``drop`` does not."""
        self._stopping = kind
        for event in self._granted.values():
            event.set()
        self._allowed.set()
        await self._notify()

    async def close(self) -> None:
        """Write what is left and close the files."""
        if self._journal is not None:
            await self._write()
            self._journal.close()
        with suppress(OutputError):  # what is missing there says that attempts were free: too much is counted
            await self._flush_sent()
        self._sent.close()

    # --- the clients' side

    async def take_in_hand(self, client: str, request_ids: Collection[int]) -> set[int]:
        """Return which of these requests a client is to send.

        A map call that Ray repeats leaves out those with an outcome; that it repeats says that the client which had
        them is gone.
        """
        missing = set(request_ids) - self._recorded
        gone = {self._holders[number] for number in missing if self._holders.get(number, client) != client}
        try:
            for other in gone:
                self._forget(other)
        except OutputError as error:
            await self.fail(error)
        self._holders.update(dict.fromkeys(missing, client))
        return missing

    async def brief(self, request_ids: Sequence[int], timeout: float) -> dict[int, list[dict[str, Any]]]:
        """Return the records that the prompts of requests show, of those for which they are known.

        Waits up to ``timeout`` seconds for one of them. All are known, and none will be sent, once the run is stopping.
        """
        allowed = self._allowed
        if min(request_ids) >= self._admission.limit and self._stopping is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(allowed.wait(), timeout)
        limit = self._admission.limit if self._stopping is None else NEVER
        return {number: self._briefs.get(number, []) for number in request_ids if number < limit}

    async def push(self, client: str, wants: Sequence[Want], failures: Sequence[Failure]) -> None:
        """Take a client's wishes, and the attempts of it that failed."""
        try:
            freed = []
            for failure in failures:
                worst = self._admission.failed(client, failure)
                if worst is not None and failure.lost:
                    self._lost[failure.request_id].append(worst)
                elif worst is not None:
                    freed.append(failure.request_id)
                self._failures += failure.kind not in ("not_sent", "length_parameter")
                if failure.message:
                    self._trouble = f"{failure.kind}: {failure.message}"
            self._sent.freed(freed)
        except OutputError as error:
            await self.fail(error)
        self._admission.want(client, wants)
        self._pump()

    async def grants(self, client: str, timeout: float) -> Answer:
        """Return what a client may send, waiting up to ``timeout`` seconds for something."""
        event = self._granted[client]
        if not self._outbox[client] and self._stopping is None:
            event.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout)
        granted, self._outbox[client] = self._outbox[client], []
        return Answer(granted, self._stopping, time.time())

    async def record(self, client: str, outcomes: Sequence[Outcome]) -> None:
        """Return when outcomes are durable. Those that come while the disk is busy share its next synchronisation.

        Raises:
            OutputError: they could not be written.
        """
        loop = asyncio.get_running_loop()
        waiting = []
        for outcome in outcomes:
            if outcome.request_id in self._pending:  # of a client that was thought dead
                waiting.append(self._pending[outcome.request_id])
            elif outcome.request_id not in self._recorded:
                written: asyncio.Future[None] = loop.create_future()
                self._pending[outcome.request_id] = written
                self._unwritten.append((outcome, written))
                waiting.append(written)
            self._lost.pop(outcome.request_id, None)  # it tells of them itself
            spent = Tokens.of_usage(outcome.usage) + Tokens.of_usage(outcome.estimated)
            try:
                self._admission.answered(outcome.request_id, client, spent)
            except OutputError as error:  # of the file that limits are shared through; the answers still count
                self._later(self.fail(error))
        self._pump()  # the slots are free; the disk need not have answered
        if self._journal is None:
            await self._notify()
        else:
            # Of its own: a call that is given up must not leave a write behind that nobody waits for.
            await asyncio.shield(self._later(self._write()))
        await asyncio.gather(*map(asyncio.shield, waiting))

    async def fail(self, error: AlpacaRayError) -> None:
        """Report an error that every request would meet: the run ends with the first of them."""
        self._error = self._error or error
        await self.stop("drop")

    def _forget(self, client: str) -> None:
        lost = self._admission.held_by(client)
        for number in [number for number in self._lost if self._holders.get(number) == client]:
            lost += [(number, worst) for worst in self._lost.pop(number)]
        self._admission.forget(client)
        self._sent.lost(lost)
        self._outbox.pop(client, None)

    def _pump(self) -> None:
        """Grant what may go now, and look again when there may be more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stopping is not None:
            return
        try:
            granted, wait = self._admission.grant()
            if granted:
                self._sent.sent([(grant.request_id, worst) for _, grant, worst in granted])
        except OutputError as error:
            self._later(self.fail(error))
            return
        if self._sent.mirrored:
            self._unannounced += granted
            if self._unannounced and not self._announcing:
                self._announcing = True
                self._later(self._announce())
        else:
            self._hand_out(granted)
        if self._admission.notes or self._admission.exhausted:
            self._later(self._notify())
        if wait < NEVER:
            self._timer = asyncio.get_running_loop().call_later(max(wait, 0.001), self._pump)

    def _hand_out(self, granted: Sequence[tuple[str, Grant, Tokens]]) -> None:
        for client, grant, _ in granted:
            self._outbox[client].append(grant)
            self._granted[client].set()

    async def _announce(self) -> None:
        """Hand out what may be sent once it is noted where the output lies; what comes meanwhile goes together."""
        try:
            while self._unannounced:
                granted, self._unannounced = self._unannounced, []
                before = time.monotonic()
                await self._flush_sent()
                took = time.monotonic() - before
                # Places under a rate limit are taken so far ahead that they are not over when the note has arrived.
                self._admission.lead = min(_LONGEST_LEAD, max(0.9 * self._admission.lead, 1.5 * took))
                if self._stopping is None:
                    self._hand_out(granted)
                else:  # nobody listens any more
                    for client, grant, _ in granted:
                        self._admission.failed(client, Failure(grant.request_id, "not_sent"))
                    self._sent.freed([grant.request_id for _, grant, _ in granted])
        except OutputError as error:
            await self.fail(error)
        finally:
            self._announcing = False

    async def _flush_sent(self) -> None:
        async with self._flushing:
            if self._sent.mirrored:
                await asyncio.get_running_loop().run_in_executor(None, self._sent.flush)

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no hold of it
        task.add_done_callback(self._tasks.discard)
        return task

    def _has_news(self) -> bool:
        waits = self._journal is None and self._unwritten
        exhausted = self._admission.exhausted and not self._told_exhausted
        return bool(self._untaken or self._error or waits or self._admission.notes or exhausted)

    async def _write(self) -> None:
        async with self._writing:
            batch, self._unwritten = self._unwritten, []
            if not batch or self._journal is None:
                return
            outcomes = [outcome for outcome, _ in batch]
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._journal.append, outcomes)
            except OutputError as error:
                await self.fail(error)
                for outcome, written in batch:
                    self._pending.pop(outcome.request_id, None)
                    written.set_exception(error)
                return
        for outcome in outcomes:
            self._pending.pop(outcome.request_id, None)
            self._recorded.add(outcome.request_id)
            self._holders.pop(outcome.request_id, None)
            self._briefs.pop(outcome.request_id, None)
        self._untaken += outcomes
        for _, written in batch:
            written.set_result(None)
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
