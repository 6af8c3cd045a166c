"""One bounded round of requests as a Ray Data job: rows with prompts in, answers into the ledger."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from alpaca_ray.errors import TeacherError
from alpaca_ray.generate.client import TeacherClient
from alpaca_ray.generate.gate import Gate
from alpaca_ray.generate.ledger import Permission
from alpaca_ray.generate.prompt import Prompt
from alpaca_ray.generate.teacher import Teacher

_SLOTS_PER_CLIENT = 64
_BLOCKS_AT_ONCE = 4
_DRIVER_CALLS = 100  # far more than it ever has open


class AskTeacher:
    """The map function: sends a block's prompts. Several calls run at once in an actor and share its slots."""

    def __init__(
        self,
        ledger: Any,
        teacher: Teacher,
        sampling: Mapping[str, Any],
        environ: Mapping[str, str],
        timeout: float | None,
        max_retries: int,
        slots: int,
    ) -> None:
        self._ledger = ledger
        self._slots = asyncio.Semaphore(slots)
        self._client = TeacherClient(teacher, sampling, environ, timeout=timeout, max_retries=max_retries)
        self._gate = Gate(ledger.follow.remote, self._stop)
        self._tasks: set[asyncio.Future[Any]] = set()

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers of the requests that were sent. A call that Ray repeats leaves out what is recorded."""
        ids = [int(number) for number in batch["request_id"]]
        missing = await self._ledger.take_in_hand.remote(ids)
        rows = zip(ids, batch["seed_ids"], batch["prompt_sha"], batch["prompt"], strict=True)
        tasks = [
            asyncio.ensure_future(self._ask(number, [str(seed) for seed in seeds], str(digest), str(prompt)))
            for number, seeds, digest, prompt in rows
            if number in missing
        ]
        self._tasks.update(tasks)
        sent = await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        for result in sent:
            if isinstance(result, Exception):
                raise result
        return {"request_id": [result for result in sent if isinstance(result, int)]}

    async def _ask(self, request_id: int, seed_ids: list[str], digest: str, prompt: str) -> int | None:
        # Permission before a slot: a request that waits for it must not hold what an earlier one needs.
        if not await self._gate.admit(request_id):
            return None
        async with self._slots:
            if self._gate.stopping:
                return None
            try:
                outcome = await self._client.ask(request_id, seed_ids, digest, prompt)
            except TeacherError as error:
                await self._ledger.fail.remote(error)
                return None
            if outcome is None:
                return None
            await self._ledger.record.remote(outcome)
            return request_id

    def _stop(self, permission: Permission) -> None:
        self._client.drain()
        if permission.stopping == "drop":
            for task in self._tasks:
                task.cancel()


class Round:
    """A Ray Data job over some prompts, running in a thread beside the driver's loop."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        clients: int,
        arguments: Mapping[str, Any],
        slots: int,
        placement: dict[str, str] | None,
    ) -> None:
        """Start.

        Args:
            clients: actors.
            arguments: of ``AskTeacher``.
            slots: requests in flight over all ``clients``.
            placement: labels of the nodes that the actors may run on (see ``client_placement``).
        """
        self.error: Exception | None = None
        share = slots // clients
        rows, calls = blocks(share)
        self._dataset = ray.data.from_items(
            [_row(prompt) for prompt in prompts], override_num_blocks=-(-len(prompts) // rows)
        ).map_batches(
            AskTeacher,
            batch_size=None,
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(
                size=clients, max_tasks_in_flight_per_actor=calls, max_concurrent_calls_per_actor=calls
            ),
            num_cpus=0,
            fn_constructor_kwargs={**arguments, "slots": share},
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
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no bars


def client_count(max_in_flight: int, asked: int | None) -> int:
    """Return how many client actors share the requests in flight."""
    return min(asked or -(-max_in_flight // _SLOTS_PER_CLIENT), max_in_flight)


def blocks(share: int) -> tuple[int, int]:
    """Return how many rows a map call has, and how many calls an actor works on at once, for its share of slots.

    Small blocks, in the order of their numbers, and no more of them in an actor than it works on at once: then the
    lowest number that is still open is always at work or next, and never queues behind ones that wait for it.
    """
    rows = max(1, share // _BLOCKS_AT_ONCE)
    return rows, -(-share // rows) + 1


def ledger_calls(max_in_flight: int, clients: int) -> int:
    """Return how many calls to the ledger may be open at once, those of the driver included."""
    _, calls = blocks(max_in_flight // clients)
    # Each slot may wait for its outcome to be written, each map call begin, and each client follow the permission;
    # twice, because what a client that died has left behind goes only when its time is up.
    return 2 * (max_in_flight + clients * (calls + 1)) + _DRIVER_CALLS


def client_placement(teacher: Teacher) -> dict[str, str] | None:
    """Return the labels of the nodes that may hold clients: this one alone where the address means this machine.

    Any other endpoint is as far from each node: None.
    """
    if not (teacher.local or teacher.loopback):
        return None
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def _row(prompt: Prompt) -> dict[str, Any]:
    return {
        "request_id": prompt.request_id,
        "seed_ids": prompt.seed_ids,
        "prompt_sha": prompt.digest,
        "prompt": prompt.text,
    }
