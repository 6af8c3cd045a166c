"""Requests of the OpenAI API: parsed, checked, and turned into what the model deployment needs. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from alpaca_ray.serve.engine.types import Sampling

Prompt = str | list[int]
Message = dict[str, str]

R = TypeVar("R", bound="_Request")
_TokenId = Annotated[int, Field(ge=0)]
_Bias = Annotated[float, Field(ge=-100, le=100)]


class ApiError(Exception):
    """A request that is answered with an error body of the OpenAI API."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, status, param, code)
        self.message = message
        self.status = status
        self.param = param
        self.code = code

    def __reduce__(self) -> Any:
        return _rebuild, (self.message, self.status, self.param, self.code)

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _rebuild(message: str, status: int, param: str | None, code: str | None) -> ApiError:
    return ApiError(message, status=status, param=param, code=code)


@dataclass(frozen=True)
class Job:
    """A checked request on its way to the model deployment.

    Either ``prompts`` (texts or token ids) or ``messages`` (chat) is set. ``sampling.max_tokens`` 0 means as many as
    the model's context leaves. Choice j of prompt i has the index ``i * n + j``.
    """

    model: str
    sampling: Sampling
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    prompts: tuple[Prompt, ...] = ()
    messages: tuple[Message, ...] = ()

    @property
    def is_chat(self) -> bool:
        """Whether the request came as chat messages."""
        return bool(self.messages)

    def choice(self, number: int) -> Sampling:
        """Return the sampling of one choice: with a seed, each choice has its own."""
        if self.sampling.seed is None or number == 0:
            return self.sampling
        return replace(self.sampling, seed=self.sampling.seed + number)


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: str = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    n: int | None = Field(None, ge=1, le=128)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, _Bias] | None = None
    ignore_eos: bool | None = None

    @pydantic.field_validator("stop")
    @classmethod
    def _at_most_four(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 4:
            raise ValueError("at most 4 texts")
        return value

    @pydantic.field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise ValueError("its keys must be token ids")
        return value

    def sampling(self, max_tokens: int) -> Sampling:
        """Return the settings for the engine; OpenAI's defaults where the request is silent."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            seed=self.seed,
            stop=tuple(text for text in stop if text),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias={int(key): bias for key, bias in (self.logit_bias or {}).items()},
            ignore_eos=bool(self.ignore_eos),
        )


class CompletionRequest(_Request):
    """The body of ``/v1/completions``."""

    prompt: str | list[str] | list[_TokenId] | list[list[_TokenId]]
    max_tokens: int | None = Field(None, ge=1)


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]


class ChatRequest(_Request):
    """The body of ``/v1/chat/completions``."""

    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)


# Parameters that would change the answer and that this server does not have, with the values that change nothing.
_UNSUPPORTED: Mapping[str, Sequence[Any]] = {
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "num_beams": (1,),
    "length_penalty": (1, 1.0),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}


def parse_completion(body: bytes) -> Job:
    """Turn the body of a completion request into a job.

    Raises:
        ApiError: it is no JSON, a field is wrong, or it asks for something this server does not have.
    """
    request = _parse(CompletionRequest, body)
    prompts = _prompts(request.prompt)
    return _job(request, request.sampling(request.max_tokens or 16), prompts=prompts)


def parse_chat(body: bytes) -> Job:
    """Turn the body of a chat request into a job.

    Raises:
        ApiError: as ``parse_completion``.
    """
    request = _parse(ChatRequest, body)
    messages = tuple(
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.content
            if isinstance(message.content, str)
            else "".join(part.text for part in message.content),
        }
        for message in request.messages
    )
    limit = request.max_completion_tokens or request.max_tokens or 0
    return _job(request, request.sampling(limit), messages=messages)


def _job(request: _Request, sampling: Sampling, **content: Any) -> Job:
    options = request.stream_options
    if options and not request.stream:
        raise ApiError("stream_options may only be given where stream is true.", param="stream_options")
    return Job(
        model=request.model,
        sampling=sampling,
        n=request.n or 1,
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        **content,
    )


def _parse(kind: type[R], body: bytes) -> R:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"The body is not valid JSON: {error}") from None
    if b"\\ud" in body.lower():  # JSON can name halves of a surrogate pair, which are no text
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError("The body holds text that is not valid Unicode.", code="invalid_value") from None
    if not isinstance(content, dict):
        raise ApiError("The body must be a JSON object.")
    try:
        request = kind.model_validate(content)
    except pydantic.ValidationError as error:
        raise _explain(error) from None
    for name, value in (request.model_extra or {}).items():
        if name in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[name]:
            raise ApiError(f"This server does not support {name!r}.", param=name, code="unsupported_parameter")
    return request


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if not prompt:
        raise ApiError("The list of prompts is empty.", param="prompt")
    if isinstance(prompt[0], int):
        return (list(prompt),)
    return tuple(prompt)


def _explain(error: pydantic.ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    where = first["loc"]
    name = ".".join(str(part) for part in where if not str(part).startswith(("list[", "constrained", "str")))
    param = str(where[0]) if where else None
    if first["type"] == "missing":
        return ApiError(f"You must provide {name!r}.", param=param, code="missing_required_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(f"Invalid value for {name!r}: {message}.", param=param, code="invalid_value")
