"""Requests as Ray Data jobs: blocks of request numbers in, answers into the ledger."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from alpaca_ray.errors import TeacherError
from alpaca_ray.generate.admission import Failure
from alpaca_ray.generate.client import Sampling, TeacherClient
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.permits import FOLLOW_SECONDS, Batcher, Permits
from alpaca_ray.generate.prompt import PromptMaker
from alpaca_ray.generate.teacher import Teacher
from alpaca_ray.generate.terms import StopKind

_SLOTS_PER_CLIENT = 64
_ROWS = 16  # of a block: what Ray Data handles, and keeps statistics of, is blocks
# Blocks that a client has open, as a multiple of what its share of slots fills: a block is done when its slowest
# request is, and the others' places must not stay empty until then.
_OPEN = 8
_DRIVER_CALLS = 100  # far more than it ever has open


class AskTeacher:
    """The map function: sends a block's prompts. Several calls run at once in an actor."""

    def __init__(
        self,
        ledger: Any,
        prompts: PromptMaker,
        teachers: Sequence[Teacher],
        sampling: Mapping[str, Sampling],
        environ: Mapping[str, str],
        timeout: float | None,
        max_retries: int,
        answered: bool = False,
    ) -> None:
        self._ledger = ledger
        self._prompts = prompts
        self._name = uuid.uuid4().hex
        self._client = TeacherClient(
            teachers, sampling, environ, timeout=timeout, max_retries=max_retries, answered=answered
        )
        self._permits = Permits(
            lambda wants, failures: ledger.push.remote(self._name, wants, failures),
            lambda seconds: ledger.grants.remote(self._name, seconds),
            self._stop,
        )
        self._outcomes: Batcher[Outcome] = Batcher(lambda outcomes: ledger.record.remote(self._name, outcomes))
        self._tasks: set[asyncio.Future[Any]] = set()

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers of the requests that were answered. A repeated call leaves out what is recorded."""
        ids = [int(number) for number in batch["request_id"]]
        missing = await self._ledger.take_in_hand.remote(self._name, ids)
        tasks = [
            asyncio.ensure_future(self._ask(number, shown)) async for number, shown in self._briefed(sorted(missing))
        ]
        sent = await asyncio.gather(*tasks, return_exceptions=True)
        for result in sent:
            if isinstance(result, Exception):
                raise result
        return {"request_id": [result for result in sent if isinstance(result, int)]}

    async def _briefed(self, ids: list[int]) -> AsyncIterator[tuple[int, Sequence[Any]]]:
        """Yield requests, and the records that their prompts show, as soon as those are known.

        One at a time: the first ones of a block may have to be answered before the last ones are known.
        """
        if not self._prompts.draws:
            for number in ids:
                yield number, ()
            return
        while ids and not self._permits.stopping:
            known: dict[int, list[Any]] = await self._ledger.brief.remote(ids, FOLLOW_SECONDS)
            for number, shown in known.items():
                yield number, shown
            ids = [number for number in ids if number not in known]

    async def _ask(self, request_id: int, machine: Sequence[Any]) -> int | None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            prompt = self._prompts.make(request_id, machine)
            outcome = await self._client.ask(prompt, self._permits.get, self._permits.failed)
        except TeacherError as error:
            await self._ledger.fail.remote(error)
            await self._permits.failed(Failure(request_id, "refused"))  # it costs nothing
            return None
        if outcome is None:
            return None
        await self._outcomes.put(outcome)
        return request_id

    def _stop(self, kind: StopKind) -> None:
        self._client.drain()
        if kind == "drop":
            for task in self._tasks:
                task.cancel()


class Round:
    """A Ray Data job over a range of request numbers, running in a thread beside the driver's loop."""

    def __init__(
        self,
        ids: range,
        clients: int,
        arguments: Mapping[str, Any],
        slots: int,
        placement: dict[str, str] | None,
        *,
        border: int | None = None,
    ) -> None:
        """Start.

        Args:
            ids: the request numbers.
            clients: actors.
            arguments: of ``AskTeacher``.
            slots: requests in flight over all ``clients``.
            placement: labels of the nodes that the actors may run on (see ``client_placement``).
            border: no block holds numbers from both sides of a multiple of this.
        """
        self.ids = ids
        self.error: Exception | None = None
        calls = open_blocks(slots // clients)
        tables = [
            pa.table({"request_id": np.arange(part.start, part.stop, dtype=np.int64)}) for part in blocks(ids, border)
        ]
        self._dataset = ray.data.from_arrow(tables).map_batches(
            AskTeacher,
            batch_size=None,
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                size=clients, max_tasks_in_flight_per_actor=calls, max_concurrent_calls_per_actor=calls
            ),
            num_cpus=0,
            fn_constructor_kwargs=dict(arguments),
            label_selector=placement,
        )
        self._thread = threading.Thread(target=self._run, name="generate-round", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the job is still at work."""
        return self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the job's end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            for _ in self._dataset.iter_batches(batch_size=None):
                pass
        except Exception as error:  # noqa: BLE001 - carried to the driver's thread, which raises it
            self.error = error


def quiet_ray_data() -> None:
    """Keep Ray Data's bars and start messages out of a job's output."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # a thread for each open call, in every client
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no bars


def client_count(max_in_flight: int, asked: int | None) -> int:
    """Return how many client actors share the requests in flight."""
    return min(asked or -(-max_in_flight // _SLOTS_PER_CLIENT), max_in_flight)


def blocks(ids: range, border: int | None = None) -> Iterator[range]:
    """Yield a range in parts of at most 16, in order; none crosses a multiple of ``border``."""
    start = ids.start
    while start < ids.stop:
        stop = min(start + _ROWS, ids.stop)
        if border is not None:
            stop = min(stop, (start // border + 1) * border)
        yield range(start, stop)
        start = stop


def open_blocks(share: int) -> int:
    """Return how many blocks a client works on at once, for its share of slots."""
    return max(2, _OPEN * share // _ROWS)


def ledger_calls(max_in_flight: int, clients: int) -> int:
    """Return how many calls to the ledger may be open at once, those of the driver included."""
    # Each client has a few calls open, and each of its blocks one when it begins; twice, because what a client that
    # died has left behind goes only when its time is up.
    return 2 * clients * (open_blocks(max_in_flight // clients) + 10) + _DRIVER_CALLS


def client_placement(teachers: Sequence[Teacher]) -> dict[str, str] | None:
    """Return the labels of the nodes that may hold clients: this one alone where an address means this machine.

    Any other endpoint is as far from each node: None.
    """
    if not any(teacher.local or teacher.loopback for teacher in teachers):
        return None
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
