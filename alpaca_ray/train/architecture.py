"""What a model is made of, known from its configuration alone: names are checked before any weights load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError, SettingsError
from alpaca_ray.models import load_config
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.adapter import (
    ALL_LINEAR,
    adaptable,
    adapter_file,
    add_adapter,
    check_rank,
    read_adapter_weights,
)
from alpaca_ray.train.decoder import freeze_beside_text

# Settings of a configuration that decide the shapes of the weights.
_SHAPES = ("model_type", "hidden_size", "intermediate_size", "ffn_dim", "num_hidden_layers", "num_attention_heads")

_SMALL_RANK = 256  # fits every model but toys, which fail as soon without being looked at


def build_skeleton(settings: TrainSettings, source: str) -> Any:
    """Return the model at ``source`` with every weight on the meta device: modules, names and shapes, no values.

    Raises:
        ModelError: its configuration is of no causal language model that transformers knows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(source, flag=settings.model_flag, cache_dir=settings.cache_dir)
    try:
        with without_zero(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ImportError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{settings.model_flag} {settings.model_name}: cannot be built: {reason}") from error
    freeze_beside_text(model)
    return model


@contextmanager
def without_zero() -> Iterator[None]:
    """Keep a model that is built or loaded from being divided by ZeRO-3: every worker would have to take part."""
    from transformers.integrations import deepspeed

    active = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = active


def check_names(settings: TrainSettings, source: str, *, resume: Path | None = None) -> None:
    """Check every name and checkpoint that was given against the model at ``source``; cheap where none was.

    Args:
        resume: the checkpoint that the run goes on from, or the folder of adapter weights alone.

    Raises:
        ModelError: the model cannot be built.
        SettingsError: a target module or layer class that the model does not have (those it has are named), a rank
            above that of its layers, or a checkpoint of another model.
    """
    adapter = settings.mode[0] == "lora"
    targets = settings.lora_target_modules if adapter and settings.lora_target_modules != [ALL_LINEAR] else []
    classes = settings.fsdp_transformer_layer_cls_to_wrap if settings.fsdp.strip() else None
    large = adapter and settings.lora_r > _SMALL_RANK
    if not targets and not classes and not large and resume is None:
        return
    skeleton = build_skeleton(settings, source)
    check_targets(skeleton, targets)
    if adapter:
        check_rank(settings, skeleton)
    if classes:
        check_layer_classes(skeleton, [name.strip() for name in classes.split(",")])
    if resume is not None:
        _check_configuration(skeleton.config, resume)
        file = adapter_file(resume)
        if adapter and file is not None:
            _check_adapter(settings, skeleton, file)


def check_targets(model: Any, names: Sequence[str]) -> None:
    """Check that each name is that of a layer an adapter can be put on.

    Raises:
        SettingsError: one is not.
    """
    paths = [path for path, _ in adaptable(model)]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths} - {"lm_head"}))
            raise SettingsError(f"--lora_target_modules {name}: the model has no such layer; it has {known}")


def check_layer_classes(model: Any, names: Sequence[str]) -> None:
    """Check that each name is a class of the model's modules.

    Raises:
        SettingsError: one is not.
    """
    classes = {type(module).__name__ for module in model.modules()}
    for name in names:
        if name not in classes:
            layers = ", ".join(sorted(found for found in classes if "Layer" in found or "Block" in found))
            raise SettingsError(
                f"--fsdp_transformer_layer_cls_to_wrap {name}: the model has no such class; it has {layers}"
            )


def _check_configuration(config: Any, checkpoint: Path) -> None:
    """Compare with the configuration that a checkpoint of a whole model carries."""
    file = checkpoint / "config.json"
    if not file.is_file():
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"--resume_from_checkpoint {file}: cannot be read: {error}") from error
    for name in _SHAPES:
        now = getattr(config, name, None)
        if name in there and now is not None and there[name] != now:
            raise SettingsError(
                f"--resume_from_checkpoint {checkpoint}: is a checkpoint of another model: {name} is {there[name]} "
                f"there, {now} in the model that was named"
            )


def _check_adapter(settings: TrainSettings, skeleton: Any, file: Path) -> None:
    """Compare names and shapes with those of the adapter that this run would train."""
    import torch
    from peft import get_peft_model_state_dict

    with torch.device("meta"):
        expected = get_peft_model_state_dict(add_adapter(settings, skeleton), save_embedding_layers=False)
    found = read_adapter_weights(file)
    wrong = f"--resume_from_checkpoint {file}: does not fit"
    layer = next((name for name in found if name not in expected), None)
    if layer is not None:
        raise SettingsError(f"{wrong}: it holds {layer}, which this adapter does not have ({_hint(settings)})")
    layer = next((name for name in expected if name not in found), None)
    if layer is not None:
        raise SettingsError(f"{wrong}: it lacks {layer}, which this adapter has ({_hint(settings)})")
    for name, weight in expected.items():
        if weight.shape != found[name].shape:
            raise SettingsError(
                f"{wrong}: it is of another model or rank: {name} has the shape {list(found[name].shape)} there, "
                f"{list(weight.shape)} here"
            )


def _hint(settings: TrainSettings) -> str:
    targets = ",".join(settings.lora_target_modules)
    return f"it is of another model, or of other layers than --lora_target_modules {targets}"
