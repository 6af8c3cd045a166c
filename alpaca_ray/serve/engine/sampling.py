"""Drawing the next token of every row of a batch, each by its own settings."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from alpaca_ray.serve.engine.types import Sampling

_CANDIDATES = 512  # a nucleus is nearly always smaller; where it is not, the whole vocabulary is sorted


@dataclass
class SamplerState:
    """What the sampler remembers of one row: its random numbers and the tokens that its penalties count.

    The random numbers come from Python's generator, so that a seed draws the same on every device and in any batch.
    """

    sampling: Sampling
    prompt: Sequence[int]
    counts: Counter[int] = field(default_factory=Counter)
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.sampling.seed)


def next_tokens(logits: torch.Tensor, states: Sequence[SamplerState]) -> list[int]:
    """Return one token for each row of ``logits`` ([B, vocabulary], any float type) and count it in its state."""
    logits = logits.to(torch.float32, copy=True)
    for row, state in enumerate(states):
        _penalise(logits[row], state)
    tokens = logits.argmax(-1).tolist()
    drawn = [row for row, state in enumerate(states) if not state.sampling.greedy]
    if drawn:
        for row, token in zip(drawn, _draw(logits[drawn], [states[row] for row in drawn]), strict=True):
            tokens[row] = token
    for token, state in zip(tokens, states, strict=True):
        state.counts[token] += 1
    return tokens


def _penalise(logits: torch.Tensor, state: SamplerState) -> None:
    """Apply a row's penalties and biases in place; ``logits`` is [vocabulary]."""
    sampling = state.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*state.prompt, *state.counts}), device=logits.device)
        scores = logits[seen]
        logits[seen] = torch.where(
            scores < 0, scores * sampling.repetition_penalty, scores / sampling.repetition_penalty
        )
    if state.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        seen = torch.tensor(list(state.counts), device=logits.device)
        counts = torch.tensor(list(state.counts.values()), device=logits.device, dtype=logits.dtype)
        logits[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits[biased] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device, dtype=logits.dtype)


def _draw(logits: torch.Tensor, states: Sequence[SamplerState]) -> list[int]:
    """Draw by temperature, then top k, then top p of what is left, in transformers' order."""
    settings = [state.sampling for state in states]
    numbers = torch.tensor([[1 - state.random.random()] for state in states], device=logits.device)
    logits = logits / torch.tensor([[max(s.temperature, 1e-5)] for s in settings], device=logits.device)
    chances = logits.softmax(-1)
    tokens = torch.zeros(len(states), dtype=torch.long, device=logits.device)
    restricted = [row for row, s in enumerate(settings) if s.top_p < 1 or s.top_k > 0]
    free = [row for row in range(len(states)) if row not in set(restricted)]
    if free:
        tokens[free] = _invert(chances[free], numbers[free])
    if restricted:
        tokens[restricted] = _draw_restricted(
            chances[restricted], numbers[restricted], [settings[row] for row in restricted]
        )
    return tokens.tolist()


def _draw_restricted(chances: torch.Tensor, numbers: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    vocabulary = chances.shape[-1]
    top_k = [min(s.top_k, vocabulary) if s.top_k > 0 else vocabulary for s in settings]
    limits = torch.tensor([[k] for k in top_k], device=chances.device)
    top_p = torch.tensor([[s.top_p] for s in settings], device=chances.device)
    width = min(vocabulary, max([_CANDIDATES, *[k for k in top_k if k < vocabulary]]))
    while True:
        best, indices = chances.topk(width)
        best = best.masked_fill(torch.arange(width, device=chances.device) >= limits, 0.0)
        mass = best.cumsum(-1)
        admitted = torch.where(limits <= width, mass[:, -1:], torch.ones_like(mass[:, -1:]))  # by top k alone
        wanted = top_p * admitted
        if width == vocabulary or bool(((limits <= width) | (mass[:, -1:] >= wanted)).all()):
            break
        width = vocabulary
    outside = (mass - best >= wanted) & (torch.arange(width, device=chances.device) > 0)
    best = best.masked_fill(outside, 0.0)
    return indices.gather(-1, _invert(best, numbers)[:, None]).squeeze(-1)


def _invert(chances: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return, for each row of weights, the first index at which their running sum reaches ``numbers`` of the whole.

    With ``numbers`` above 0 that index has a weight, also where rounding makes the product equal to the whole.
    """
    mass = chances.cumsum(-1)
    return torch.searchsorted(mass, numbers * mass[:, -1:]).squeeze(-1)
