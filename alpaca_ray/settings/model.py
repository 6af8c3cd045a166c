"""The settings that say which model is trained, in which dialect, and how much of it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting
from alpaca_ray.settings.dialects import LORA_FLAGS, Dialect


class ModelSettings(Settings):
    """The model and its adapter."""

    model: str | None = setting(
        None,
        "Base model: hub id, folder, or `embedded` (the default). Speaks our dialect: LoRA on all linear layers, "
        "bf16, packed.",
        group="model",
    )
    base_model: str | None = setting(
        None,
        "The same in Alpaca-LoRA's dialect, with its defaults (8-bit base, fp16, learning rate 3e-4, batch 128).",
        group="model",
    )
    model_name_or_path: str | None = setting(
        None, "The same in Stanford's dialect: full fine-tuning with TrainingArguments' defaults.", group="model"
    )
    cache_dir: str | None = setting(None, "Where the hub's downloads are kept.", group="model")
    full: bool = setting(False, "Train every weight instead of a LoRA adapter.", group="model")
    load_8bit: bool = setting(False, "Load the base in 8 bits (bitsandbytes); LoRA only.", group="model")
    load_4bit: bool = setting(False, "Load the base in 4-bit NF4 (bitsandbytes); LoRA only.", group="model")

    lora_r: int = setting(8, "Rank of the adapter.", group="LoRA", ge=1)
    lora_alpha: int = setting(16, "Scale of the adapter: its output is multiplied by alpha / rank.", group="LoRA", ge=1)
    use_rslora: bool = setting(
        False, "Rank-stabilised LoRA: its output is multiplied by alpha / sqrt(rank) instead.", group="LoRA"
    )
    use_dora: bool = setting(False, "DoRA: learn each row's length beside the adapter.", group="LoRA")
    lora_dropout: float = setting(0.05, "Dropout before the adapter.", group="LoRA", ge=0, lt=1)
    lora_target_modules: list[str] = setting(
        ["all-linear"], "Names of the layers that get an adapter, or all-linear. Also '[q_proj,v_proj]'.", group="LoRA"
    )

    @property
    def spoken(self) -> Dialect:
        """The dialect in which the model was named."""
        if self.base_model is not None:
            return "Alpaca-LoRA"
        return "Stanford" if self.model_name_or_path is not None else "ours"

    @property
    def model_name(self) -> str:
        """The base model, by the name the user gave."""
        return self.base_model or self.model_name_or_path or self.model or "embedded"

    @property
    def model_flag(self) -> str:
        """The flag that named it, for messages."""
        return {"ours": "--model", "Alpaca-LoRA": "--base_model", "Stanford": "--model_name_or_path"}[self.spoken]

    @property
    def mode(self) -> tuple[Literal["lora", "full"], str]:
        """Whether an adapter or all weights are trained, and why."""
        if self.full:
            return "full", "--full"
        if self.spoken != "Stanford":
            return "lora", f"the default of {'our' if self.spoken == 'ours' else 'the Alpaca-LoRA'} dialect"
        asked = [flag for flag in LORA_FLAGS if self.was_given(flag) and getattr(self, flag) is not False]
        if asked:
            return "lora", f"--{asked[0]} stands beside --model_name_or_path"
        return "full", "the default of the Stanford dialect"

    @model_validator(mode="after")
    def _no_contradictory_weights(self) -> Self:
        if self.load_8bit and self.load_4bit:
            raise ValueError("--load_8bit and --load_4bit contradict each other: give one of them")
        bits = "load_4bit" if self.load_4bit else "load_8bit"
        if self.full and (self.load_4bit or self.load_8bit):
            raise ValueError(f"--full with --{bits}: quantised weights cannot be trained; leave one of them out")
        return self
