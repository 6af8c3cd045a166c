"""Settings of ``jobs/generate.py``: the original's flags, and what a real endpoint needs beside them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import setting
from alpaca_ray.settings.filters import ASKING_FILTERS, DECIDING_FILTERS, FilterSettings
from alpaca_ray.settings.teacher import TeacherSettings


class GenerateSettings(TeacherSettings, FilterSettings):
    """What to make, how it is asked for, and what is kept."""

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
    replay: bool = setting(
        False,
        "Go through the journal in output_dir again with other filters or another novelty rule, without a request.",
    )
    request_batch_size: int = setting(
        5, "Requests per progress line. Each prompt is a request of its own; see max_in_flight.", ge=1
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
    similarity_stats: Literal["full", "top", "none"] = setting(
        "full",
        "What regen.json tells of each record: full: the ten nearest instructions and the average over all; top: the "
        "ten nearest; none: neither, which is much faster for large pools.",
        group="novelty",
    )
    tokenizer: Literal["rouge", "unicode"] = setting(
        "rouge",
        "Tokens that instructions are compared by. rouge: the original's, which sees nothing but a-z and 0-9; unicode: "
        "for every other script.",
        group="novelty",
    )
    num_shards: int = setting(
        1, "Actors over which the pool of instructions is spread; results do not depend on it.", group="novelty", ge=1
    )
    decontaminate: list[str] | None = setting(
        None,
        "Evaluation files or hub ids (owner/name, owner/name:split, owner/name:config:split): an instruction that is "
        "one of their prompts, contains it or is too near to it is dropped.",
        group="novelty",
    )
    decontaminate_threshold: float = setting(
        0.7,
        "Too near to an evaluation prompt is a ROUGE-L above this; a prompt that is the same or contained always is.",
        group="novelty",
        ge=0,
        le=1,
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
        ways = [name for name in ("resume", "overwrite", "replay") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"--{ways[0]} and --{ways[1]} contradict each other: give one of them")
        return self

    def stops(self) -> list[str]:
        """Return the stop texts that are sent to the teacher."""
        if self.stop is None:
            return self.default_stops(self.num_tasks_per_prompt)
        return [text.replace("\\n", "\n") for text in self.stop if text]


# What the answers depend on, beside the teacher, the stop texts, the prompt's header and the seed tasks.
ASKING = (
    "temperature",
    "top_p",
    "max_tokens",
    "extra_body",
    "drop_params",
    "num_prompt_instructions",
    "num_tasks_per_prompt",
    "max_example_words",
    "seed",
    *ASKING_FILTERS,
)
# What is made of the answers.
DECIDING = (
    *("similarity_threshold", "similarity_stats", "tokenizer", "decontaminate_threshold"),
    *DECIDING_FILTERS,
)
