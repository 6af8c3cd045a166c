"""What a run may spend: reserved in full before a request is sent, settled when its answer comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from alpaca_ray.errors import SettingsError

_MILLION = 1_000_000
# US dollars for a million tokens, prompt and answer: OpenAI's list prices. Used for OpenAI's own endpoint only; prices
# change, and --prices overrides them.
PRICES_AS_OF = "2025-08"
OPENAI_PRICES: Mapping[str, tuple[float, float]] = {
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-4-turbo": (10.0, 30.0),
    "gpt-4": (30.0, 60.0),
    "gpt-3.5-turbo": (0.5, 1.5),
    "gpt-3.5-turbo-instruct": (1.5, 2.0),
    "o3": (2.0, 8.0),
    "o3-mini": (1.1, 4.4),
    "o4-mini": (1.1, 4.4),
    "davinci-002": (2.0, 2.0),
    "babbage-002": (0.4, 0.4),
}


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers; an answer's include what a reasoning model thought."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.completion

    @classmethod
    def of_usage(cls, usage: Mapping[str, Any]) -> Self:
        """Return the counts of an API's ``usage``; what is missing counts nothing."""
        return cls(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float
    completion: float

    def cost(self, tokens: Tokens) -> float:
        """Return US dollars."""
        return (tokens.prompt * self.prompt + tokens.completion * self.completion) / _MILLION


@dataclass(frozen=True)
class Limits:
    """Where a run stops spending. ``price`` is known wherever ``max_cost`` is set."""

    price: Price | None = None
    max_cost: float | None = None
    max_tokens_total: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.max_cost is not None or self.max_tokens_total is not None

    def exceeded_by(self, tokens: Tokens) -> str | None:
        """Return the flag whose limit so many tokens would exceed, or None."""
        if self.max_tokens_total is not None and tokens.total > self.max_tokens_total:
            return "--max_tokens_total"
        if self.max_cost is not None and self.price is not None and self.price.cost(tokens) > self.max_cost:
            return "--max_cost"
        return None


class Budget:
    """Tokens spent and reserved. What is reserved is the worst case, so that nothing under way can exceed a limit."""

    def __init__(self, limits: Limits, spent: Tokens = Tokens()) -> None:
        """``spent``: by earlier sessions of the run, what was under way when they ended in full."""
        self.limits = limits
        self.spent = spent
        self.reserved = Tokens()

    def reserve(self, worst: Tokens) -> bool:
        """Reserve a request's worst case; False where it does not fit beside what is spent and under way."""
        if self.limits.exceeded_by(self.spent + self.reserved + worst):
            return False
        self.reserved += worst
        return True

    def settle(self, worst: Tokens, actual: Tokens) -> None:
        """Replace a reservation by what the request really took; nothing where it was refused."""
        self.reserved -= worst
        self.spent += actual

    def exhausted_for(self, worst: Tokens) -> str | None:
        """Return the flag that ends the run: a request's worst case does not fit even beside nothing under way."""
        return None if self.reserved.total else self.limits.exceeded_by(self.spent + worst)


def prompt_bound(prompt: str) -> int:
    """Return a number of tokens that a prompt cannot exceed: byte-level tokens hold a byte each at least.

    64 more cover the chat template and special tokens.
    """
    return len(prompt.encode("utf-8", "surrogatepass")) + 64


def price_of(model: str, prices: Mapping[str, Any] | None, *, openai: bool) -> Price | None:
    """Return a model's price: from the user's table, or, at OpenAI, from the list; None where it is unknown.

    A dated name (``gpt-4o-mini-2024-07-18``) has the price of the name without the date.

    Raises:
        SettingsError: the user's table is none.
    """
    table: dict[str, Any] = dict(OPENAI_PRICES) if openai else {}
    for name, pair in (prices or {}).items():
        valid = isinstance(pair, list | tuple) and len(pair) == 2
        if not valid or not all(isinstance(value, int | float) and value >= 0 for value in pair):
            raise SettingsError(
                f"--prices: {name!r} must have two prices, US dollars for a million prompt and answer tokens, such as "
                f"'{{\"{name}\": [0.15, 0.6]}}'"
            )
        table[name] = pair
    fitting = [name for name in table if model == name or (openai and model.startswith(f"{name}-20"))]
    return Price(*map(float, table[max(fitting, key=len)])) if fitting else None
