"""Answers of the OpenAI API, made of the openai package's own types. Pure."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import Completion, CompletionChoice, CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from alpaca_ray.serve.engine.types import FinishReason
from alpaca_ray.serve.protocol import Job
from alpaca_ray.serve.registry import Catalogue

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class ChoicePiece:
    """The next part of one choice's text."""

    index: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a whole request."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Answer:
    """A whole answer, its choices in order of their index."""

    choices: tuple[ChoicePiece, ...]
    usage: Usage


# What comes out of the model: pieces as they arrive and at last the usage, or one whole answer.
Part = list[ChoicePiece] | Usage | Answer


@dataclass
class AnswerWriter:
    """Writes one request's answer, whole or as server-sent events."""

    job: Job
    created: int = field(default_factory=lambda: int(time.time()))
    _started: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._id = f"{'chatcmpl' if self.job.is_chat else 'cmpl'}-{uuid.uuid4().hex}"

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        usage = _usage(answer.usage)
        if self.job.is_chat:
            choices = [
                Choice(
                    index=piece.index,
                    finish_reason=piece.finish_reason or "stop",
                    logprobs=None,
                    message=ChatCompletionMessage(role="assistant", content=piece.text, refusal=None),
                )
                for piece in answer.choices
            ]
            body: Any = ChatCompletion(
                id=self._id,
                object="chat.completion",
                created=self.created,
                model=self.job.model,
                choices=choices,
                usage=usage,
            )
        else:
            body = Completion(
                id=self._id,
                object="text_completion",
                created=self.created,
                model=self.job.model,
                choices=[
                    CompletionChoice(
                        index=piece.index, finish_reason=piece.finish_reason or "stop", logprobs=None, text=piece.text
                    )
                    for piece in answer.choices
                ],
                usage=usage,
            )
        return body.model_dump(mode="json", exclude_unset=True)

    def events(self, piece: ChoicePiece) -> str:
        """Return the event, or events, of a part of a choice. Chat begins each choice with its role."""
        if not self.job.is_chat:
            # The same object as a whole answer; its type knows no open end, so the choice is made unchecked.
            choice = CompletionChoice.model_construct(
                index=piece.index, finish_reason=piece.finish_reason, logprobs=None, text=piece.text
            )
            return self._event([choice.model_dump(mode="json", exclude_unset=True, warnings=False)])
        deltas: list[tuple[ChoiceDelta, FinishReason | None]] = []
        if piece.index not in self._started:
            self._started.add(piece.index)
            deltas.append((ChoiceDelta(role="assistant", content=""), None))
        if piece.text:
            deltas.append((ChoiceDelta(content=piece.text), None))
        if piece.finish_reason:
            deltas.append((ChoiceDelta(), piece.finish_reason))
        return "".join(
            self._event(
                [
                    ChunkChoice(index=piece.index, delta=delta, finish_reason=reason, logprobs=None).model_dump(
                        mode="json", exclude_unset=True
                    )
                ]
            )
            for delta, reason in deltas
        )

    def end(self, usage: Usage) -> str:
        """Return what closes a stream: the usage, where it was asked for, and the end mark."""
        return (self._event([], usage) if self.job.include_usage else "") + DONE

    def _event(self, choices: Sequence[Any], usage: Usage | None = None) -> str:
        kind = "chat.completion.chunk" if self.job.is_chat else "text_completion"
        body = {"id": self._id, "object": kind, "created": self.created, "model": self.job.model, "choices": choices}
        if self.job.include_usage:
            body["usage"] = _usage(usage).model_dump(exclude_unset=True) if usage else None
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def error_event(body: dict[str, Any]) -> str:
    """Return the event that ends a stream which broke after it had begun."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def model_list(catalogue: Catalogue, started: int) -> dict[str, Any]:
    """Return the body of ``/v1/models``: the base model first, then the adapters with it as their parent."""
    return {"object": "list", "data": [model_card(catalogue, name, started) for name in catalogue.names]}


def model_card(catalogue: Catalogue, name: str, started: int) -> dict[str, Any]:
    """Return the body of ``/v1/models/{name}``.

    Raises:
        KeyError: no such model.
    """
    adapter = catalogue.find(name)
    card = Model(id=name, object="model", created=adapter.created if adapter else started, owned_by="alpaca_ray")
    extra = {"parent": catalogue.base if adapter else None, "root": str(adapter.name if adapter else catalogue.base)}
    return {**card.model_dump(mode="json", exclude_unset=True), **extra}


def _usage(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.prompt + usage.completion,
    )
