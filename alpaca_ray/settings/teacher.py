"""Settings of whoever is asked: the endpoint, how fast, how often, and for how much."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting

_DROPPABLE = ("temperature", "top_p", "stop", "max_tokens", "logit_bias")
_ONE = "a request brings one answer, which budget and limits count on"
# Fields of a request that --extra_body may not hold, and what to do.
_OWN_FIELDS = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), "give --max_tokens"),
    **dict.fromkeys(("n", "best_of", "stream", "stream_options"), _ONE),
    **dict.fromkeys(("messages", "prompt"), "give --prompt_header"),
    **{
        "model": "give --model_name",
        "temperature": "give --temperature",
        "top_p": "give --top_p",
        "stop": "give --stop",
    },
    "response_format": "give --response_format",
}


class TeacherSettings(Settings):
    """Which endpoint, its limits, and the budget."""

    model_name: str | None = setting(
        None,
        "Teacher model. With a model and no base_url: $OPENAI_BASE_URL, or OpenAI. With neither, or 'embedded': the "
        "embedded model, served on this cluster for the length of the run.",
        group="teacher",
    )
    base_url: str | None = setting(
        None, "OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.", group="teacher"
    )
    endpoints: list[str] | None = setting(
        None,
        "Several endpoints or keys in place of base_url: 'URL [weight=W] [key=VARIABLE] [model=NAME]', each in quotes. "
        "Requests are shared by weight; the rate limits hold for each.",
        group="teacher",
    )
    api: Literal["auto", "completions", "chat"] = setting(
        "auto",
        "Which of the endpoint's APIs to use. auto: chat for OpenAI's chat models and JSON answers, completions "
        "everywhere else.",
        group="teacher",
    )
    api_key_env: str = setting(
        "OPENAI_API_KEY", "Environment variable that holds the key (never the key itself).", group="teacher"
    )
    extra_body: dict[str, Any] | None = setting(
        None,
        """Further fields of each request, as JSON: '{"reasoning_effort": "low"}'.""",
        group="teacher",
    )
    drop_params: list[str] | None = setting(
        None,
        "Parameters that the endpoint refuses and that are not to be sent: temperature, top_p, stop, max_tokens, "
        "logit_bias (of --stanford_compat).",
        group="teacher",
    )
    request_timeout: float = setting(
        300.0,
        "Seconds that one attempt may take. A teacher that the run starts itself is waited for as long as it takes.",
        group="teacher",
        gt=0,
        allow_inf_nan=False,
    )
    max_retries: int = setting(
        8,
        "Further attempts after a server error, a time-out or a lost connection. Rate limits do not count: they are "
        "waited for until stall_timeout.",
        group="teacher",
        ge=0,
    )
    stall_timeout: float | None = setting(
        None,
        "Stop, resumable, when no answer has come for so many seconds. By default 900, or longer where a request may "
        "take longer with all its attempts. Not for a teacher that the run starts itself.",
        group="teacher",
        gt=0,
    )

    max_in_flight: int = setting(32, "Requests under way at once, all client actors together.", group="limits", ge=1)
    num_clients: int | None = setting(
        None, "Client actors that share max_in_flight. By default one for each 64 in flight.", group="limits", ge=1
    )
    requests_per_minute: float | None = setting(
        None,
        "Requests a minute that an endpoint may get, from all clients, and all runs on this machine with its key.",
        group="limits",
        gt=0,
        allow_inf_nan=False,
    )
    requests_per_second: float | None = setting(
        None, "The same for a second.", group="limits", gt=0, allow_inf_nan=False
    )
    tokens_per_minute: float | None = setting(
        None,
        "Tokens a minute, prompts and answers. A request counts with its longest answer until it is back.",
        group="limits",
        gt=0,
        allow_inf_nan=False,
    )

    max_cost: float | None = setting(
        None,
        "End the run before it has cost more than so many US dollars, that of a resumed run's earlier sessions "
        "included. The model's price must be known: see prices.",
        group="budget",
        gt=0,
        allow_inf_nan=False,
    )
    max_tokens_total: int | None = setting(
        None, "End the run before it has used more tokens than this, prompts and answers.", group="budget", ge=1
    )
    max_requests: int | None = setting(
        None,
        "Stop after this many requests (those in a resumed journal included). By default a run without any end in "
        "sight stops with an error: after 100 requests and 20 more for each instruction asked for.",
        group="budget",
        ge=1,
    )
    prices: dict[str, Any] | None = setting(
        None,
        "US dollars for a million prompt and answer tokens, by model, as JSON: '{\"my-model\": [0.15, 0.6]}'. OpenAI's "
        "list prices are known.",
        group="budget",
    )

    def patience(self) -> float:
        """Return the seconds without any answer after which a run stops."""
        if self.stall_timeout is not None:
            return self.stall_timeout
        spacing = 60 / self.requests_per_minute if self.requests_per_minute else 0.0
        return max(900.0, self.request_timeout * (self.max_retries + 1), 3 * spacing)

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        if self.base_url is not None and self.endpoints:
            raise ValueError("--base_url and --endpoints contradict each other: give one of them")
        own = sorted(set(self.extra_body or ()) & set(_OWN_FIELDS))
        if own:
            raise ValueError(f"--extra_body {own[0]}: this field is the run's own: {_OWN_FIELDS[own[0]]}")
        unknown = sorted(set(self.drop_params or ()) - set(_DROPPABLE))
        if unknown:
            raise ValueError(f"--drop_params {unknown[0]}: only {', '.join(_DROPPABLE)} can be left out")
        if "max_tokens" in (self.drop_params or ()):
            for flag in ("max_cost", "max_tokens_total", "tokens_per_minute"):
                if getattr(self, flag) is not None:
                    raise ValueError(f"--{flag} needs a longest answer: --drop_params max_tokens leaves it out")
        return self
