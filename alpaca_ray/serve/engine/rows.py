"""One answer in the making."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alpaca_ray.serve.engine.sampling import SamplerState
from alpaca_ray.serve.engine.text import IncrementalDecoder, StopScanner
from alpaca_ray.serve.engine.types import FinishReason, GenerationRequest, Piece

Deliver = Callable[[Piece | Exception], None]


class Row:
    """A request that waits for a slot or holds one."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, deliver: Deliver) -> None:
        self.request = request
        self.sampler = SamplerState(request.sampling, request.prompt)
        self.deliver = deliver
        self.cancelled = False
        self.finished = False
        self.last_token = 0
        self.generated = 0
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = StopScanner(request.sampling.stop)
        self._text: list[str] = []

    @property
    def position(self) -> int:
        """Where the last token stands in the row's sequence; that token is not in the cache yet."""
        return len(self.request.prompt) + self.generated - 1

    def accept(self, token: int, eos: frozenset[int], limit: int) -> None:
        """Take the next token: deliver what text it completes, and finish where it ends the answer.

        Args:
            token: the token that was drawn.
            eos: tokens that end an answer; they are counted and give no text.
            limit: tokens that prompt and answer may have together.
        """
        self.last_token = token
        self.generated += 1
        ended = token in eos and not self.request.sampling.ignore_eos
        text, stopped = ("", False) if ended else self._stops.push(self._decoder.push(token))
        reason: FinishReason | None = None
        if ended or stopped:
            reason = "stop"
        elif self.generated >= self.request.sampling.max_tokens or self.position + 1 >= limit:
            reason = "length"
        if reason and not stopped:
            rest, stopped = self._stops.push(self._decoder.flush())
            text += rest
            if stopped:
                reason = "stop"
            else:
                text += self._stops.flush()
        self._emit(text, reason)

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        self.finished = True
        self.deliver(error)

    def _emit(self, text: str, reason: FinishReason | None) -> None:
        self.finished = reason is not None
        if not self.request.stream:
            self._text.append(text)
            if not reason:
                return
            text = "".join(self._text)
        if text or reason:
            self.deliver(Piece(text, self.generated, reason))
