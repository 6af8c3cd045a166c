"""The model deployment: an engine, and the adapters that Serve's multiplexing routes to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from alpaca_ray.errors import ModelError, UserError
from alpaca_ray.prompts import load_template
from alpaca_ray.quiet import quiet_libraries
from alpaca_ray.serve.adapter_folder import AdapterInfo, fingerprint, folder_of, read_adapter
from alpaca_ray.serve.protocol import ApiError, Job
from alpaca_ray.settings.serve import ServeArgs

logger = logging.getLogger("ray.serve")

_LOAD_TRIES = 3


class _Lease:
    """An adapter in the engine's memory, as Serve's multiplexing holds it: it is freed when Serve drops it."""

    def __init__(self, engine: Any, key: str, adapter: AdapterInfo) -> None:
        self._engine = engine
        self.key = key
        self.adapter = adapter

    def __del__(self) -> None:
        self._engine.unload_adapter(self.key)


class ModelServer:
    """The base model with its adapters, and the engine that generates."""

    def __init__(self, args: ServeArgs, threads: int) -> None:
        import torch

        from alpaca_ray.serve.engine.loading import load_for_generation
        from alpaca_ray.serve.engine.torch_engine import TorchEngine
        from alpaca_ray.serve.service import ModelService

        quiet_libraries(use_gpu=torch.cuda.is_available())
        torch.set_num_threads(threads)
        loaded = load_for_generation(
            args.base_model, dtype=args.dtype, load_8bit=args.load_8bit, max_model_len=args.max_model_len
        )
        self._engine = TorchEngine(loaded, max_batch_size=args.max_batch_size)
        template = load_template(args.prompt_template) if args.prompt_template else None
        self._service = ModelService(self._engine, template)

    async def answer(self, job: Job) -> AsyncGenerator[Any, None]:
        """Yield what ``ModelService.answer`` yields; a refusal comes as an ``ApiError`` that is yielded, not raised.

        Raised, it would be logged with its traceback on every hop.
        """
        load_id = serve.get_multiplexed_model_id()
        lease = None
        try:
            lease = await self._hold(load_id) if load_id else None
            async for part in self._service.answer(job, lease.adapter if lease else None, lease.key if lease else None):
                yield part
        except ApiError as error:
            yield error
        except UserError as error:
            yield ApiError(str(error), param="model", code="adapter_unusable")
        finally:
            if lease:
                self._engine.release_adapter(lease.key)

    async def stats(self) -> dict[str, int]:
        """Return the engine's counts, for operators and tests."""
        return self._engine.stats()

    def check_health(self) -> None:
        """Tell Serve to replace this replica when the engine's thread has died."""
        if not self._engine.alive:
            raise RuntimeError("the engine has stopped")

    async def adapter(self, load_id: str) -> _Lease:
        """Load an adapter; ``model_deployment`` puts Serve's multiplexing around it, which remembers and evicts.

        Its description is read here, with the weights: a template of one version never meets the weights of another.
        """
        folder = folder_of(load_id)
        for _ in range(_LOAD_TRIES):
            started = time.monotonic()
            adapter = await asyncio.to_thread(read_adapter, folder)
            key = await self._engine.load_adapter(folder)
            if fingerprint(folder) == adapter.identity:
                logger.info("adapter %s loaded in %.2f s", folder.name, time.monotonic() - started)
                return _Lease(self._engine, key, adapter)
            self._engine.unload_adapter(key)
        raise ModelError(f"adapter {folder.name}: its files keep changing: ask again when they are written")

    async def _hold(self, load_id: str) -> _Lease:
        """Return an adapter's lease, held in memory: Serve may evict it at any moment after it has given it."""
        while True:
            lease = await self.adapter(load_id)
            if self._engine.hold_adapter(lease.key):
                return lease


def model_deployment(max_loaded_adapters: int) -> serve.Deployment:
    """Return the deployment of ``ModelServer`` that keeps up to so many adapters in a replica's memory.

    Serve takes the number where the method is defined, so the class is made here.
    """

    class MultiplexedModelServer(ModelServer):
        @serve.multiplexed(max_num_models_per_replica=max_loaded_adapters)
        async def adapter(self, load_id: str) -> _Lease:
            return await super().adapter(load_id)

    return serve.deployment(MultiplexedModelServer, name="model")
