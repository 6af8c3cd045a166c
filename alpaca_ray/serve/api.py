"""The OpenAI API as an ASGI application, over anything that answers jobs. Knows no Ray."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from alpaca_ray.serve.adapter_folder import AdapterInfo
from alpaca_ray.serve.answers import Answer, AnswerWriter, Part, Usage, error_event, model_card, model_list
from alpaca_ray.serve.disconnect import CancelOnDisconnect
from alpaca_ray.serve.protocol import ApiError, Job, parse_chat, parse_completion
from alpaca_ray.serve.registry import Catalogue

# Answers a job with an adapter, or with the base model; errors are raised as ApiError.
Backend = Callable[[Job, AdapterInfo | None], AsyncGenerator[Part, None]]
# Gives the models that are served now.
Catalogues = Callable[[], Awaitable[Catalogue]]


def create_api(catalogues: Catalogues, backend: Backend) -> FastAPI:
    """Return the application for the models that ``catalogues`` gives at each request."""
    api = FastAPI(title="alpaca_ray", docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(CancelOnDisconnect)
    started = int(time.time())

    @api.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), status_code=error.status)

    @api.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return JSONResponse(ApiError(message, status=error.status_code).body(), status_code=error.status_code)

    @api.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @api.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(model_list(await catalogues(), started))

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        try:
            return JSONResponse(model_card(await catalogues(), name, started))
        except KeyError:
            raise _unknown_model(name) from None

    @api.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(parse_completion(await request.body()))

    @api.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(parse_chat(await request.body()))

    async def answer(job: Job) -> Response:
        try:
            adapter = (await catalogues()).find(job.model)
        except KeyError:
            raise _unknown_model(job.model) from None
        parts = backend(job, adapter)
        writer = AnswerWriter(job)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(aclosing(parts))
            first = await anext(parts)  # before any header is sent: a refusal is still an answer of its own
            if isinstance(first, Answer):
                return JSONResponse(writer.whole(first))
            stack.pop_all()  # the stream closes them
        return StreamingResponse(_events(writer, first, parts), media_type="text/event-stream")

    return api


async def _events(writer: AnswerWriter, part: Part, parts: AsyncGenerator[Part, None]) -> AsyncIterator[str]:
    async with aclosing(parts):
        try:
            while not isinstance(part, Usage):
                assert isinstance(part, list)
                yield "".join(writer.events(piece) for piece in part)
                part = await anext(parts)
            yield writer.end(part)
        except ApiError as error:  # the status line is long gone: the error is the stream's last event
            yield error_event(error.body())


def _unknown_model(name: str) -> ApiError:
    return ApiError(f"The model {name!r} does not exist.", status=404, param="model", code="model_not_found")
