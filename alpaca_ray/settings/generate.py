"""Settings of ``jobs/generate.py``: the original's flags, and what a real endpoint needs beside them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting


class GenerateSettings(Settings):
    """What to make, who writes it, how it is asked, and what is kept."""

    output_dir: str = setting("out/generate", "Folder for regen.json, journal.jsonl, rejected.jsonl and metrics.json.")
    seed_tasks_path: str = setting(
        "seeds", "Seed tasks (JSON list, JSONL, Parquet or a stage's folder); 'seeds' means those that are shipped."
    )
    num_instructions_to_generate: int = setting(
        100, "Instructions that regen.json should hold in the end, those already in it included.", ge=1
    )
    seed: int = setting(42, "Seed of the choice of examples: request number and seed fix a prompt.")
    resume: bool = setting(False, "Go on with a run in output_dir; no answer in its journal is asked for again.")
    overwrite: bool = setting(False, "Delete the files of an earlier run in output_dir and start anew.")
    request_batch_size: int = setting(
        5, "Requests per progress line. Each prompt is a request of its own; see max_in_flight.", ge=1
    )

    model_name: str | None = setting(
        None,
        "Teacher model. With a model and no base_url: $OPENAI_BASE_URL, or OpenAI. With neither, or 'embedded': the "
        "embedded model, served on this cluster for the length of the run.",
        group="teacher",
    )
    base_url: str | None = setting(
        None, "OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.", group="teacher"
    )
    api: Literal["auto", "completions", "chat"] = setting(
        "auto",
        "Which of the endpoint's APIs to use. auto: chat for OpenAI's chat models, completions everywhere else.",
        group="teacher",
    )
    api_key_env: str = setting(
        "OPENAI_API_KEY", "Environment variable that holds the key (never the key itself).", group="teacher"
    )
    max_in_flight: int = setting(32, "Requests under way at once, all client actors together.", group="teacher", ge=1)
    num_clients: int | None = setting(
        None, "Client actors that share max_in_flight. By default one for each 64 in flight.", group="teacher", ge=1
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
        "Further attempts after a rate limit, a server error, a time-out or a lost connection.",
        group="teacher",
        ge=0,
    )
    max_requests: int | None = setting(
        None,
        "Stop after this many requests (those in a resumed journal included). By default a run without any end in "
        "sight stops with an error: after 100 requests and 20 more for each instruction asked for.",
        group="teacher",
        ge=1,
    )

    num_prompt_instructions: int = setting(3, "Seed tasks shown as examples in each prompt.", group="prompt", ge=1)
    num_tasks_per_prompt: int = setting(
        20, "Tasks that a prompt asks for, its examples included, as the original counts.", group="prompt", ge=2
    )
    max_example_words: int | None = setting(
        None,
        "Use only seed tasks of at most this many words (instruction, input and output together) as examples.",
        group="prompt",
        ge=1,
    )
    prompt_header: str = setting(
        "full",
        "Text above the examples: full, short, or a file of your own; {num_tasks} stands for num_tasks_per_prompt.",
        group="prompt",
    )

    temperature: float = setting(1.0, "Sampling temperature.", group="sampling", ge=0, le=2, allow_inf_nan=False)
    top_p: float = setting(1.0, "Nucleus sampling: share of probability kept.", group="sampling", gt=0, le=1)
    max_tokens: int = setting(3072, "Longest answer, in tokens.", group="sampling", ge=1)
    stop: list[str] | None = setting(
        None,
        r"Texts at which the answer ends; \n is a line break. By default where a task too many would begin.",
        group="sampling",
    )

    similarity_threshold: float = setting(
        0.7, "Drop an instruction whose ROUGE-L with any seed or kept one is above this.", group="novelty", ge=0, le=1
    )
    num_cpus: int | None = setting(
        None, "Threads that compare instructions. By default one for each core.", group="novelty", ge=1
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_tasks_per_prompt <= self.num_prompt_instructions:
            raise ValueError(
                f"--num_tasks_per_prompt {self.num_tasks_per_prompt} counts the examples of "
                f"--num_prompt_instructions {self.num_prompt_instructions} too: it must be larger"
            )
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite contradict each other: give one of them")
        return self

    def stops(self) -> list[str]:
        """Return the stop texts that are sent to the teacher."""
        if self.stop is None:
            return [f"\n{self.num_tasks_per_prompt + 1}. Instruction"]
        return [text.replace("\\n", "\n") for text in self.stop if text]
