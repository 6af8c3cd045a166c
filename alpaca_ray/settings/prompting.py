"""Settings of what a request asks for: the answer's form, where the examples come from, new tasks or harder ones."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting


class PromptSettings(Settings):
    """How new tasks are asked for."""

    response_format: Literal["text", "json_schema"] = setting(
        "text",
        "Form of the answers: Stanford's numbered text, which any model can continue, or JSON held to a schema, for "
        "endpoints that enforce one.",
        group="prompt",
    )
    machine_examples: int = setting(
        0,
        "How many of the num_prompt_instructions examples are instructions that this run has kept, once there are any "
        "(self-instruct: 2 of 8).",
        group="prompt",
        ge=0,
    )
    strategy: Literal["self_instruct", "evolve"] = setting(
        "self_instruct",
        "self_instruct: new tasks beside examples. evolve: one task a request, rewritten from a seed task or a kept "
        "one to be harder, or to be another of its kind (Evol-Instruct).",
        group="prompt",
    )

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if self.strategy == "evolve" and self.machine_examples:
            raise ValueError("--machine_examples and --strategy evolve contradict each other: evolve draws on the pool")
        shown = getattr(self, "num_prompt_instructions", None)
        if shown is not None and self.machine_examples >= shown:
            raise ValueError(
                f"--machine_examples {self.machine_examples} must be below --num_prompt_instructions {shown}, which "
                "counts them: at least one example is a seed task"
            )
        return self
