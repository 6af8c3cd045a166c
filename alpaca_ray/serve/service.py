"""From a checked request to its answer, on top of an engine. Knows neither Ray nor HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.serve.adapter_folder import AdapterInfo
from alpaca_ray.serve.answers import Answer, ChoicePiece, Part, Usage
from alpaca_ray.serve.chat import chat_prompt
from alpaca_ray.serve.engine.types import EngineError, GenerationRequest, Piece
from alpaca_ray.serve.protocol import ApiError, Job, Prompt

if TYPE_CHECKING:
    from alpaca_ray.serve.engine.torch_engine import TorchEngine  # brings torch

_MAX_CHOICES = 1024


class ModelService:
    """Answers jobs: tokenises, generates every choice at once, and puts pieces and usage together."""

    def __init__(self, engine: TorchEngine, default_template: PromptTemplate | None = None) -> None:
        self.engine = engine
        self._tokenizer = engine.loaded.tokenizer
        self._template = default_template

    async def answer(self, job: Job, adapter: AdapterInfo | None, key: str | None) -> AsyncGenerator[Part, None]:
        """Yield an answer: where the job streams, lists of pieces and at last the usage, else one ``Answer``.

        Args:
            job: the request.
            adapter: the adapter's description, None for the base model.
            key: the key under which the engine has it.

        Raises:
            ApiError: the request does not fit the model, or generation failed.
        """
        requests = self._requests(job, adapter, key)
        usage = Usage(sum(len(request.prompt) for request in requests[:: job.n]), 0)
        pieces: dict[int, ChoicePiece] = {}
        async with aclosing(_merge(self.engine, requests)) as merged:
            async for batch in merged:
                done = sum(piece.tokens for _, piece in batch if piece.finish_reason)
                usage = replace(usage, completion=usage.completion + done)
                choices = [ChoicePiece(index, piece.text, piece.finish_reason) for index, piece in batch]
                if job.stream:
                    yield choices
                else:
                    pieces.update({choice.index: choice for choice in choices})
        if job.stream:
            yield usage
        else:
            yield Answer(tuple(pieces[index] for index in sorted(pieces)), usage)

    def _requests(self, job: Job, adapter: AdapterInfo | None, key: str | None) -> list[GenerationRequest]:
        loaded = self.engine.loaded
        if job.is_chat:
            prompts: Sequence[Prompt] = [chat_prompt(job.messages, self._tokenizer, adapter, self._template)]
        else:
            prompts = job.prompts
        if len(prompts) * job.n > _MAX_CHOICES:
            raise ApiError(f"At most {_MAX_CHOICES} choices in one request.", param="n")
        for token in job.sampling.logit_bias:
            if token >= loaded.vocabulary:
                raise ApiError(f"logit_bias: {token} is no token of this model.", param="logit_bias")
        requests = []
        for prompt in prompts:
            tokens = self._encode(prompt, "messages" if job.is_chat else "prompt")
            limit = self._answer_limit(len(tokens), job)
            for number in range(job.n):
                sampling = replace(job.choice(number), max_tokens=limit)
                requests.append(GenerationRequest(tokens, sampling, key, job.stream))
        return requests

    def _encode(self, prompt: Prompt, param: str) -> tuple[int, ...]:
        tokens = self._tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        if not tokens and self._tokenizer.bos_token_id is not None:
            tokens = [self._tokenizer.bos_token_id]
        if not tokens:
            raise ApiError("The prompt is empty.", param=param, code="invalid_value")
        if max(tokens) >= self.engine.loaded.vocabulary:
            raise ApiError(f"The prompt holds {max(tokens)}, which is no token of this model.", param=param)
        return tuple(tokens)

    def _answer_limit(self, prompt: int, job: Job) -> int:
        context = self.engine.loaded.max_model_len
        wanted = job.sampling.max_tokens or max(1, context - prompt)
        if prompt + wanted > context:
            raise ApiError(
                f"This model's maximum context length is {context} tokens. However, you requested {prompt + wanted} "
                f"tokens ({prompt} in the prompt, {wanted} in the answer). Please shorten one of them.",
                param="messages" if job.is_chat else "prompt",
                code="context_length_exceeded",
            )
        return wanted


async def _merge(
    engine: TorchEngine, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[list[tuple[int, Piece]], None]:
    """Run requests side by side and yield what has come, each piece with its request's number.

    Leaving early cancels them all.
    """
    arrived: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()

    async def follow(number: int, request: GenerationRequest) -> None:
        try:
            async with aclosing(engine.generate(request)) as pieces:
                async for piece in pieces:
                    arrived.put_nowait((number, piece))
        except EngineError as error:
            arrived.put_nowait(ApiError(str(error), status=500))

    tasks = [asyncio.create_task(follow(number, request)) for number, request in enumerate(requests)]
    try:
        open_requests = len(tasks)
        while open_requests:
            batch: list[tuple[int, Piece]] = []
            item = await arrived.get()
            while True:
                if isinstance(item, Exception):
                    raise item
                batch.append(item)
                open_requests -= item[1].finish_reason is not None
                if arrived.empty():
                    break
                item = arrived.get_nowait()
            yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
