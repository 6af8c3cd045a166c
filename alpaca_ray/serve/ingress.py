"""The ingress deployment: serves the API and passes its jobs on to the model deployment."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from alpaca_ray.errors import find_cause
from alpaca_ray.serve.adapter_folder import AdapterInfo
from alpaca_ray.serve.answers import Part
from alpaca_ray.serve.api import create_api
from alpaca_ray.serve.live import LiveCatalogue
from alpaca_ray.serve.protocol import ApiError, Job
from alpaca_ray.serve.registry import Catalogue
from alpaca_ray.settings.serve import ServeArgs


@serve.ingress()
class Ingress:
    """Takes HTTP requests; holds no model."""

    def __init__(self, model: DeploymentHandle, args: ServeArgs, catalogue: Catalogue) -> None:
        self._model = model.options(stream=True)
        self._catalogue = LiveCatalogue(args, catalogue)

    def __serve_build_asgi_app__(self) -> Any:
        return create_api(self._catalogue, self._answer)

    async def _answer(self, job: Job, adapter: AdapterInfo | None) -> AsyncGenerator[Part, None]:
        """Yield the model deployment's parts; Serve routes to a replica that has the adapter, where one does."""
        handle = self._model.options(multiplexed_model_id=adapter.load_id) if adapter else self._model
        parts = handle.answer.remote(job)
        ended = False
        try:
            async for part in parts:
                if isinstance(part, ApiError):
                    raise part
                yield part
            ended = True
        except RayError as error:
            known = find_cause(error)
            raise ApiError(str(known) if known else "The model failed to answer.", status=500) from error
        finally:
            if not ended:  # the client has left: Serve sees that only of requests that it cancels itself
                parts.cancel()
