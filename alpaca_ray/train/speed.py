"""What makes a model train faster without changing its result: attention within samples, fused LoRA layers."""

from __future__ import annotations

import importlib.util
from typing import Any

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.collate import Packing, packing_of
from alpaca_ray.train.plan import Plan

_OWN = "alpaca_packed"  # the name in train/attention.py, which imports torch
# The packages that transformers' names stand for.
FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def prepare(model: Any, settings: TrainSettings, plan: Plan) -> Packing:
    """Choose a model's attention, fuse its adapter's layers, and return how samples of a row are kept apart.

    ``--attn_implementation auto`` takes flash attention's own package on a GPU where it is installed, and else this
    project's attention for packed rows (on a GPU: the flash kernels that torch brings).

    Raises:
        SettingsError: the attention asked for is not installed, needs a GPU, or is not in this model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    choice, packing = attention_of(settings, plan, base.config.model_type)
    if choice == _OWN:
        from alpaca_ray.train import attention

        attention.install(base)
    elif choice is not None:
        set_attention(base, choice)
    if plan.mode == "lora" and settings.fused_lora and not plan.fsdp and not settings.deepspeed:
        from alpaca_ray.train import lora

        lora.fuse(model)
    return packing


def attention_of(settings: TrainSettings, plan: Plan, model_type: str) -> tuple[str | None, Packing]:
    """Return the name of the attention (None: as the library chooses), and how samples are kept apart. Pure.

    Raises:
        SettingsError: the attention asked for cannot run here.
    """
    choice = choose_attention(settings.attn_implementation, plan)
    if choice is None and settings.packing and packing_of(model_type, _OWN) == "borders":
        choice = _OWN
    return choice, packing_of(model_type, choice) if settings.packing else "none"


def not_packed(settings: TrainSettings, plan: Plan, model_type: str) -> list[str]:
    """Return a line that says so where samples cannot be packed although they should be; else none. Pure."""
    if not settings.packing or attention_of(settings, plan, model_type)[1] != "none":
        return []
    asked = settings.attn_implementation
    which = "" if asked == "auto" else f" with --attn_implementation {asked}"
    return [
        "warning: samples are padded, not packed: no way to keep those of one row apart is known for "
        f"{model_type} models{which}; --group_by_length pads less"
    ]


def choose_attention(asked: str, plan: Plan) -> str | None:
    """Return transformers' name of the attention, None for this project's own. Pure.

    Raises:
        SettingsError: it cannot run here.
    """
    half = plan.precision in ("bf16", "fp16")
    if asked == "auto":
        if plan.use_gpu and half:
            return next((name for name in reversed(FLASH_PACKAGES) if _installed(FLASH_PACKAGES[name])), None)
        return None
    if asked in FLASH_PACKAGES:
        flag = f"--attn_implementation {asked}"
        if not plan.use_gpu:
            raise SettingsError(f"{flag} needs a GPU, and this runs on the CPU: leave it out")
        if not half:
            raise SettingsError(f"{flag} needs half precision: give --bf16 or --fp16")
        if not _installed(FLASH_PACKAGES[asked]) and not _installed("kernels"):
            raise SettingsError(f"{flag}: neither {FLASH_PACKAGES[asked]} nor kernels is installed")
    return asked


def set_attention(base: Any, name: str) -> None:
    """Give a model one of the library's ways of attention.

    Raises:
        SettingsError: it is not installed, or not in this model.
    """
    try:
        base.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise SettingsError(f"--attn_implementation {name}: {str(error).splitlines()[0]}") from error


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
