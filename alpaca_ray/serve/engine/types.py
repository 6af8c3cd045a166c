"""What goes into an engine and what comes out of it. Pure: shared by the API, which loads no torch, and the engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How one answer is drawn.

    ``temperature`` 0 means greedy; ``top_k`` 0 or below means no limit; ``stop`` texts end the answer and are left out.
    The penalties are OpenAI's, over the tokens generated so far; ``repetition_penalty`` is the CTRL paper's
    (https://arxiv.org/abs/1909.05858), over prompt and answer, as in transformers.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature <= 0


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate: the prompt's token ids, how to draw, and the key of a loaded adapter (None: the base).

    With ``stream`` false the answer comes as a single ``Piece``.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    stream: bool = False


@dataclass(frozen=True)
class Piece:
    """The next part of an answer: new text, tokens generated so far, and on the last piece why it ended."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


class EngineError(RuntimeError):
    """A request failed inside the engine through no fault of its sender."""
