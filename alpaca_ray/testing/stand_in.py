"""How the stand-in teacher answers, how long it takes, what it limits and how it fails: its settings."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting

# What a reasoning model of OpenAI's does not take.
_REASONING_REFUSES = ("max_tokens", "temperature")
_Z99 = NormalDist().inv_cdf(0.99)
# Shares of attempts; the rest is answered. Their sum is at most 1.
ATTEMPT_FAULTS = (
    *("rate_429", "rate_500", "rate_503", "rate_drop", "rate_drop_body", "rate_drip", "rate_truncated_json"),
)


class StandIn(Settings):
    """Settings of the stand-in teacher."""

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(0, "Port to listen on; 0 takes a free one and prints it.", ge=0, le=65535)
    models: list[str] = setting(["stand-in"], "Models that it lists; a request for another is answered 404.")
    key: str | None = setting(None, "Key that it demands; without one it takes any.")
    seed: int = setting(0, "Seed of answers (with the prompt) and of faults (with prompt and attempt).")
    remember: bool = setting(True, "Keep each request's body and prompt; false keeps digests, for very long runs.")

    tasks: int = setting(6, "Tasks in an answer. A prompt for an evolved task gets one.", group="answers", ge=1)
    bad_tasks: bool = setting(True, "Whether a share of the tasks is bad, as real teachers' are.", group="answers")
    answer_tokens: list[int] | None = setting(
        None,
        "Length of an answer: one number of tokens, or the ends of a range from which each prompt's is drawn.",
        group="answers",
    )
    reasoning: bool = setting(
        False,
        "Behave as a reasoning model: think aloud before the answer, charge for it, refuse max_tokens and temperature.",
        group="answers",
    )
    think_tokens: int = setting(60, "Tokens of thinking.", group="answers", ge=1)
    refuse_params: list[str] = setting([], "Further parameters answered 400 when they are set.", group="answers")
    rate_no_usage: float = setting(0.0, "Share of prompts answered without usage.", group="answers", ge=0, le=1)

    latency: float = setting(0.0, "Seconds before it answers.", group="latency", ge=0)
    jitter: float = setting(0.0, "Further seconds at most, drawn evenly for each request.", group="latency", ge=0)
    latency_median: float | None = setting(
        None, "Median of further seconds, drawn log-normally for each request.", group="latency", gt=0
    )
    latency_p99: float | None = setting(None, "Their 99th percentile.", group="latency", gt=0)

    requests_per_second: int | None = setting(
        None, "More in any second are answered 429, with Retry-After.", group="limits", ge=1
    )
    requests_per_minute: int | None = setting(None, "More in any 60 seconds likewise.", group="limits", ge=1)
    tokens_per_minute: int | None = setting(None, "Tokens likewise.", group="limits", ge=1)
    tokens_counted: Literal["used", "asked"] = setting(
        "used",
        "What a request weighs: prompt and answer, or prompt and the longest answer that it allows.",
        group="limits",
    )
    count_refused: bool = setting(False, "Whether requests answered 429 count in the limits too.", group="limits")
    max_concurrent: int | None = setting(None, "More at once are answered 429.", group="limits", ge=1)

    rate_429: float = setting(0.0, "Share of attempts answered 429.", group="faults", ge=0, le=1)
    retry_after: float | None = setting(None, "Seconds that such a 429 (or 503) asks to wait.", group="faults", ge=0)
    retry_after_form: Literal["seconds", "date", "ms"] = setting(
        "seconds", "How 429s say it: Retry-After in seconds, as a date, or retry-after-ms.", group="faults"
    )
    rate_500: float = setting(0.0, "Share of attempts answered 500.", group="faults", ge=0, le=1)
    rate_503: float = setting(0.0, "Share of attempts answered 503.", group="faults", ge=0, le=1)
    rate_drop: float = setting(0.0, "Share of attempts dropped before the first byte.", group="faults", ge=0, le=1)
    rate_drop_body: float = setting(
        0.0, "Share of attempts dropped in the middle of the body.", group="faults", ge=0, le=1
    )
    rate_drip: float = setting(0.0, "Share of attempts answered byte by byte.", group="faults", ge=0, le=1)
    drip: float = setting(0.5, "Seconds between two such bytes.", group="faults", ge=0)
    rate_truncated_json: float = setting(
        0.0, "Share of attempts answered 200 with half a body, correctly framed.", group="faults", ge=0, le=1
    )
    rate_empty: float = setting(0.0, "Share of prompts answered without any choice.", group="faults", ge=0, le=1)
    rate_length: float = setting(
        0.0, "Share of prompts whose answer breaks off, with finish_reason length.", group="faults", ge=0, le=1
    )
    rate_refusal: float = setting(
        0.0, "Share of prompts refused in words (a chat message's refusal field).", group="faults", ge=0, le=1
    )
    rate_filtered: float = setting(
        0.0, "Share of prompts stopped with finish_reason content_filter.", group="faults", ge=0, le=1
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.latency_median is None) != (self.latency_p99 is None):
            raise ValueError("--latency_median and --latency_p99 go together: give both")
        if self.latency_median and self.latency_p99 and self.latency_p99 < self.latency_median:
            raise ValueError(f"--latency_p99 {self.latency_p99:g} is below --latency_median {self.latency_median:g}")
        if sum(getattr(self, name) for name in ATTEMPT_FAULTS) > 1 + 1e-9:
            raise ValueError("the shares " + ", ".join(f"--{name}" for name in ATTEMPT_FAULTS) + " exceed 1 together")
        lengths = self.answer_tokens
        if lengths is not None and (len(lengths) not in (1, 2) or lengths[0] < 1 or lengths[-1] < lengths[0]):
            raise ValueError("--answer_tokens: give one number above 0, or the lower and the upper end of a range")
        return self

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of the log-normal latency; 0 where there is none."""
        if self.latency_median is None or self.latency_p99 is None:
            return 0.0
        return math.log(self.latency_p99 / self.latency_median) / _Z99

    @property
    def refused(self) -> tuple[str, ...]:
        """Parameters that are answered 400 when a request sets them."""
        return (*(_REASONING_REFUSES if self.reasoning else ()), *self.refuse_params)
