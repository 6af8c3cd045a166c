"""The model deployment: an engine, and the adapters that Serve's multiplexing routes to it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from alpaca_ray.errors import ModelError
from alpaca_ray.prompts import load_template
from alpaca_ray.quiet import quiet_libraries
from alpaca_ray.serve.protocol import ApiError, Job
from alpaca_ray.serve.registry import Catalogue
from alpaca_ray.settings.serve import ServeArgs

logger = logging.getLogger("ray.serve")


class _Lease:
    """An adapter in the engine's memory, as Serve's multiplexing holds it: it is freed when Serve drops it."""

    def __init__(self, engine: Any, key: str) -> None:
        self._engine = engine
        self.key = key

    def __del__(self) -> None:
        self._engine.unload_adapter(self.key)


class ModelServer:
    """The base model with its adapters, and the engine that generates."""

    def __init__(self, args: ServeArgs, catalogue: Catalogue, threads: int) -> None:
        import torch

        from alpaca_ray.serve.engine.loading import load_for_generation
        from alpaca_ray.serve.engine.torch_engine import TorchEngine
        from alpaca_ray.serve.service import ModelService

        quiet_libraries(use_gpu=torch.cuda.is_available())
        torch.set_num_threads(threads)
        loaded = load_for_generation(
            args.base_model, dtype=args.dtype, load_8bit=args.load_8bit, max_model_len=args.max_model_len
        )
        self._catalogue = catalogue
        self._engine = TorchEngine(loaded, max_batch_size=args.max_batch_size)
        template = load_template(args.prompt_template) if args.prompt_template else None
        self._service = ModelService(self._engine, template)

    async def answer(self, job: Job) -> AsyncGenerator[Any, None]:
        """Yield what ``ModelService.answer`` yields; a refusal comes as an ``ApiError`` that is yielded, not raised.

        Raised, it would be logged with its traceback on every hop.
        """
        name = serve.get_multiplexed_model_id()
        try:
            lease = await self.adapter(name) if name else None
            adapter = self._catalogue.find(name) if name else None
            async for part in self._service.answer(job, adapter, lease.key if lease else None):
                yield part
        except ApiError as error:
            yield error
        except ModelError as error:
            yield ApiError(str(error), param="model", code="adapter_unusable")

    async def stats(self) -> dict[str, int]:
        """Return the engine's counts, for operators and tests."""
        return self._engine.stats()

    def check_health(self) -> None:
        """Tell Serve to replace this replica when the engine's thread has died."""
        if not self._engine.alive:
            raise RuntimeError("the engine has stopped")

    async def adapter(self, name: str) -> _Lease:
        """Load an adapter; ``model_deployment`` puts Serve's multiplexing around it, which remembers and evicts."""
        adapter = self._catalogue.find(name)
        if adapter is None:
            raise ModelError(f"{name} is the base model, not an adapter")
        started = time.monotonic()
        key = await self._engine.load_adapter(adapter.folder)
        logger.info("adapter %s loaded in %.2f s", name, time.monotonic() - started)
        return _Lease(self._engine, key)


def model_deployment(max_loaded_adapters: int) -> serve.Deployment:
    """Return the deployment of ``ModelServer`` that keeps up to so many adapters in a replica's memory.

    Serve takes the number where the method is defined, so the class is made here.
    """

    class MultiplexedModelServer(ModelServer):
        @serve.multiplexed(max_num_models_per_replica=max_loaded_adapters)
        async def adapter(self, name: str) -> _Lease:
            return await super().adapter(name)

    return serve.deployment(MultiplexedModelServer, name="model")
