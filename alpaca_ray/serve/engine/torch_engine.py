"""Continuous batching on transformers models: requests join and leave the running batch between any two tokens.

One thread owns the model. Each round it takes new requests as far as slots are free (their prompts run together, up
to a bound, so that running answers never wait long), then draws one token for every running answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from alpaca_ray.serve.engine.loading import LoadedModel
from alpaca_ray.serve.engine.rows import Row
from alpaca_ray.serve.engine.runner import ModelRunner
from alpaca_ray.serve.engine.sampling import next_tokens
from alpaca_ray.serve.engine.types import EngineError, GenerationRequest, Piece

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PREFILL_TOKENS = 2048  # padded prompt tokens of one round; a single longer prompt still runs, alone


class TorchEngine:
    """Generates answers for any number of concurrent requests over one model and its adapters.

    Args:
        loaded: the base model.
        max_batch_size: answers that are generated at once; further requests wait in order.
    """

    def __init__(self, loaded: LoadedModel, *, max_batch_size: int) -> None:
        self.loaded = loaded
        self._slots = max_batch_size
        self._runner = ModelRunner(loaded, max_batch_size)
        self._rows: list[Row] = []  # row i holds slot i
        self._waiting: deque[Row] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._released = False  # an adapter may be free to go
        self._generated = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread still runs."""
        return self._thread.is_alive()

    @property
    def adapters(self) -> int:
        """How many adapters are in memory."""
        return len(self._runner.bank)

    def stats(self) -> dict[str, int]:
        """Return answers running and waiting, adapters in memory, and tokens generated since the start."""
        return {
            "running": len(self._rows),
            "waiting": sum(not row.cancelled for row in list(self._waiting)),
            "adapters": self.adapters,
            "generated": self._generated,
        }

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield an answer's pieces. Leaving the iterator early gives the slot back at the next token.

        Raises:
            EngineError: the forward pass failed, the adapter is not in memory, or the engine is closed.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def deliver(item: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the event loop is gone, and with it whoever asked
                loop.call_soon_threadsafe(pieces.put_nowait, item)

        row = Row(request, self.loaded.tokenizer, deliver)
        if request.adapter and not self.hold_adapter(request.adapter):
            raise EngineError("the adapter is no longer in memory")  # it alone fails, not the batch that it would join
        try:
            self._submit(row)
            while True:
                item = await pieces.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            row.cancelled = True
            if request.adapter:
                self.release_adapter(request.adapter)

    async def load_adapter(self, folder: Path) -> str:
        """Load an adapter between two tokens and return the key that requests name it by.

        Raises:
            ModelError: it does not fit the base model.
        """
        loading = self._call(lambda: self._runner.bank.load(folder))
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(self._drop)  # it may load all the same, and nobody would ever free it
            raise

    def hold_adapter(self, key: str) -> bool:
        """Keep a loaded adapter in memory until ``release_adapter``; False where it no longer is there.

        May be called from any thread.
        """
        return self._runner.bank.acquire(key)

    def release_adapter(self, key: str) -> None:
        """End a ``hold_adapter``. May be called from any thread."""
        self._runner.bank.release(key)
        self._notify()

    def unload_adapter(self, key: str) -> None:
        """Free an adapter as soon as no request uses it. May be called from any thread, also twice."""
        self._runner.bank.retire(key)
        self._notify()

    def close(self) -> None:
        """Stop the thread; running requests end with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _drop(self, loading: Future[str]) -> None:
        if not loading.cancelled() and loading.exception() is None:
            self.unload_adapter(loading.result())

    def _submit(self, row: Row) -> None:
        with self._wake:
            if self._closing or not self._thread.is_alive():
                raise EngineError("the engine is not running")
            self._waiting.append(row)
            self._wake.notify()

    def _notify(self) -> None:
        with self._wake:
            self._released = True  # remembered: the thread may be at work, and would sleep through a mere notice
            self._wake.notify()

    def _call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the engine's thread, between two tokens."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for it
                future.set_exception(error)

        with self._wake:
            self._calls.append(run)
            self._wake.notify()
        return future

    def _run(self) -> None:
        with torch.inference_mode():
            while self._round():
                pass
        for row in [*self._rows, *self._waiting]:
            row.fail(EngineError("the engine was stopped"))

    def _round(self) -> bool:
        """Do one round of work, or wait for some; return whether to go on."""
        with self._wake:
            if not (self._calls or self._waiting or self._rows or self._closing or self._released):
                self._wake.wait()
            self._released = False
            if self._closing:
                return False
            calls, self._calls = self._calls, deque()
            new = self._admit()
        for call in calls:
            call()
        self._runner.bank.collect()
        if new:
            self._guard(new, lambda: self._prefill(new))
        self._leave(lambda row: row.cancelled or row.finished)
        if self._rows:
            self._guard(self._rows, self._decode)
            self._leave(lambda row: row.finished)
        if not self._rows:
            self._runner.cache.release()
        return True

    def _admit(self) -> list[Row]:
        """Take waiting requests, in order, as far as slots and the bound of one prefill admit."""
        new: list[Row] = []
        longest = 0
        while self._waiting and len(self._rows) + len(new) < self._slots:
            row = self._waiting[0]
            longest = max(longest, len(row.request.prompt))
            if new and longest * (len(new) + 1) > _PREFILL_TOKENS:
                break
            self._waiting.popleft()
            if not row.cancelled:
                new.append(row)
        return new

    def _prefill(self, new: list[Row]) -> None:
        keys = [row.request.adapter for row in new]
        logits = self._runner.prefill([row.request.prompt for row in new], keys, len(self._rows))
        self._rows += new
        self._draw(new, logits)

    def _decode(self) -> None:
        logits = self._runner.decode(
            [row.last_token for row in self._rows],
            [row.position for row in self._rows],
            [row.request.adapter for row in self._rows],
        )
        self._draw(self._rows, logits)

    def _draw(self, rows: list[Row], logits: torch.Tensor) -> None:
        tokens = next_tokens(logits, [row.sampler for row in rows])
        self._generated += len(tokens)
        for row, token in zip(rows, tokens, strict=True):
            row.accept(token, self.loaded.eos, self.loaded.max_model_len)

    def _leave(self, gone: Callable[[Row], bool]) -> None:
        """Free the slots of rows that are done; the last row moves into each, so that used slots stay contiguous."""
        index = 0
        while index < len(self._rows):
            if not gone(self._rows[index]):
                index += 1
                continue
            last = self._rows.pop()
            if index < len(self._rows):
                self._rows[index] = last
                self._runner.cache.move(len(self._rows), index, last.position)

    def _guard(self, rows: list[Row], work: Callable[[], None]) -> None:
        """Run a forward pass; where it fails, only the rows in it fail, and the engine goes on."""
        try:
            work()
        except Exception as error:
            logger.exception("a forward pass of %d rows failed", len(rows))
            for row in rows:
                if not row.finished:
                    row.fail(EngineError(f"generation failed: {error}"))
