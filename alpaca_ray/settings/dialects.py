"""The dialects of ``jobs/train.py``: the flag that names the model chooses whose defaults hold.

Sources: ``finetune.py`` of alpaca-lora (``--base_model``), ``train.py`` of stanford_alpaca and the defaults of
TrainingArguments that it inherits (``--model_name_or_path``). ``--model``, or none of them, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from alpaca_ray.errors import SettingsError

Dialect = Literal["ours", "Stanford", "Alpaca-LoRA"]

# Flag that names the model -> the dialect it chooses.
MODEL_FLAGS: dict[str, Dialect] = {
    "model": "ours",
    "base_model": "Alpaca-LoRA",
    "model_name_or_path": "Stanford",
}

ALPACA_LORA: dict[str, Any] = {
    "data_path": ["yahma/alpaca-cleaned"],
    "output_dir": "./lora-alpaca",
    "load_8bit": True,
    "fp16": True,
    "bf16": False,
    "batch_size": 128,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 3,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 100,
    "warmup_ratio": 0.0,
    "optim": "adamw_torch",
    "model_max_length": 256,
    "val_set_size": 2000,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "v_proj"],
    "train_on_inputs": True,
    "add_eos_token": False,
    "group_by_length": False,
    "packing": False,
    "prompt_template": "alpaca",
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 200,
    "save_strategy": "steps",
    "save_steps": 200,
    "save_total_limit": 3,
    "load_best_model_at_end": True,
}

STANFORD: dict[str, Any] = {
    "bf16": False,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "warmup_ratio": 0.0,
    "model_max_length": 512,
    "val_set_size": 0,
    "packing": False,
    "prompt_template": "stanford",
    "logging_steps": 500,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": None,
}

_DEFAULTS: dict[Dialect, dict[str, Any]] = {"ours": {}, "Alpaca-LoRA": ALPACA_LORA, "Stanford": STANFORD}

# A flag of these beside --model_name_or_path asks for LoRA, which Stanford's trainer did not have.
LORA_FLAGS = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora", "load_8bit", "load_4bit"
)  # fmt: skip


def choose(given: Mapping[str, Any]) -> tuple[Dialect, dict[str, Any]]:
    """Return the dialect that a set of given settings speaks, and the defaults it brings.

    Raises:
        SettingsError: two flags name a model.
    """
    named = [flag for flag in MODEL_FLAGS if given.get(flag) is not None]
    if len(named) > 1:
        raise SettingsError(
            f"--{named[0]} and --{named[1]} both name the model, and each brings its own defaults: give one of them"
        )
    dialect = MODEL_FLAGS[named[0]] if named else "ours"
    defaults = dict(_DEFAULTS[dialect])
    if dialect == "Alpaca-LoRA":
        if _true(given.get("load_4bit")) or _true(given.get("full")):
            defaults["load_8bit"] = False
        if _true(given.get("bf16")):
            defaults["fp16"] = False
        if _zero(given.get("val_set_size")):  # the original's own rule: without validation there is no best one
            defaults |= {"eval_strategy": "no", "load_best_model_at_end": False}
        if given.get("warmup_ratio") is not None:  # the default's 100 steps would win over it
            defaults["warmup_steps"] = 0
    elif dialect == "ours" and _true(given.get("fp16")):
        defaults["bf16"] = False
    return dialect, defaults


def _true(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "yes", "on", "t", "y")


def _zero(value: Any) -> bool:
    try:
        return value is not None and float(value) == 0
    except (TypeError, ValueError):
        return False  # not a number: the field's own check says so
