"""The LoRA adapter of a run: put on the model, or read back as weights alone. Runs inside a worker."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.decoder import beside_text

ALL_LINEAR = "all-linear"
# PEFT's own, PEFT's older one, and what Alpaca-LoRA reads of a checkpoint folder.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
_EXPERTS = (
    ": peft takes these names for those of the experts, too, which in this mixture are one tensor and no linear "
    "layers: name the layers of the attention, such as q_proj,v_proj"
)


def add_adapter(settings: TrainSettings, model: Any) -> Any:
    """Put a new LoRA adapter on a model and freeze everything else.

    rsLoRA divides by the root of the rank (Kalajdzievski, 2023, arXiv:2312.03732); DoRA learns each row's length apart
    from its direction (Liu et al., 2024, arXiv:2402.09353). Parts that no text goes through get none, and neither do
    the experts of a mixture, which transformers computes as one tensor and not as linear layers.

    Raises:
        SettingsError: peft can put no adapter on the layers that were named, or the rank is larger than all of them.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.layer import ParamWrapper

    targets = settings.lora_target_modules
    check_rank(settings, model)
    beside = beside_text(model)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=_resolved(model, targets),
        exclude_modules=rf"(?:{'|'.join(map(re.escape, beside))})(?:\..*)?" if beside else None,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    named = f"--lora_target_modules {','.join(targets)}"
    try:
        model = get_peft_model(model, config)
    except ValueError as error:
        if ParamWrapper.__name__ not in str(error):
            raise SettingsError(f"{named}: {' '.join(str(error).split())}") from error
        raise SettingsError(f"{named}{_EXPERTS}") from error
    if any(isinstance(part, ParamWrapper) for part in model.modules()):
        raise SettingsError(f"{named}{_EXPERTS}")
    # The name the user gave, never a path inside a worker: a reader on another machine must be able to follow it.
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = settings.model_name
    # peft would ask the hub whether the vocabulary was resized, by a name that only we may know; LoRA never does that.
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    return model


def check_rank(settings: TrainSettings, model: Any) -> None:
    """Check that some layer is large enough for the adapter's rank: no product of its size has a larger one.

    Raises:
        SettingsError: none is.
    """
    targets, head = settings.lora_target_modules, model.get_output_embeddings()
    widest = 0
    for path, part in adaptable(model):
        named = any(path == name or path.endswith(f".{name}") for name in targets)
        if named or (list(targets) == [ALL_LINEAR] and part is not head):
            widest = max(widest, _narrow_side(part))
    if 0 < widest < settings.lora_r:
        raise SettingsError(
            f"--lora_r {settings.lora_r}: no layer that gets an adapter has a rank above {widest} itself: give a "
            "smaller one, or --full"
        )


def _narrow_side(part: Any) -> int:
    """Return the smaller side of a layer's weight, by its attributes: ZeRO-3 may have divided the weight itself."""
    for sides in (("in_features", "out_features"), ("num_embeddings", "embedding_dim"), ("nx", "nf")):
        if all(hasattr(part, side) for side in sides):
            return min(int(getattr(part, side)) for side in sides)
    return 0


def adaptable(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and module of the layers that a text goes through and that an adapter can be put on."""
    import torch

    beside = tuple(f"{path}." for path in beside_text(model))
    for path, part in model.named_modules():
        fits = isinstance(part, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d)
        if (fits or type(part).__name__ == "Conv1D") and not f"{path}.".startswith(beside):
            yield path, part


def _resolved(model: Any, targets: Sequence[str]) -> list[str] | str:
    """Return what peft is to look for: the user's words, or names where ``all-linear`` means more to peft than here.

    Of a mixture it would take the experts, too, and of a model with a vision tower its layers.
    """
    import torch

    if list(targets) != [ALL_LINEAR]:
        return list(targets)
    if not beside_text(model) and not _has_experts(model):
        return ALL_LINEAR
    head = model.get_output_embeddings()
    linear = (
        path
        for path, part in adaptable(model)
        if part is not head and not isinstance(part, torch.nn.Embedding | torch.nn.Conv1d)
    )
    return sorted({path.rsplit(".", 1)[-1] for path in linear})


def _has_experts(model: Any) -> bool:
    """Whether the model keeps its experts' matrices in one tensor, which ZeRO-3 may have divided."""
    return any(len(getattr(part, "ds_shape", part.shape)) == 3 for part in model.parameters())


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Load adapter weights alone (no optimiser state) into a model that has an adapter.

    Raises:
        SettingsError: the folder holds none, or the weights are of another adapter.
    """
    from peft import set_peft_model_state_dict

    file = adapter_file(folder)
    if file is None:
        raise SettingsError(
            f"--resume_from_checkpoint {folder}: holds neither trainer_state.json nor {ADAPTER_FILES[0]}"
        )
    try:
        result = set_peft_model_state_dict(model, read_adapter_weights(file))
    except RuntimeError as error:
        raise SettingsError(f"--resume_from_checkpoint {file}: does not fit this adapter: {error}") from error
    if result.unexpected_keys:
        raise SettingsError(
            f"--resume_from_checkpoint {file}: holds {result.unexpected_keys[0]}, which this adapter does not have"
        )


def adapter_file(folder: Path) -> Path | None:
    """Return the file of a folder that holds adapter weights, if there is one."""
    return next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)


def read_adapter_weights(file: Path) -> dict[str, Any]:
    """Return tensors by name; a pickled file may hold nothing but weights.

    Raises:
        SettingsError: it cannot be read, or holds something else.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"--resume_from_checkpoint {file}: cannot be read as weights: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise SettingsError(f"--resume_from_checkpoint {file}: holds no weights by name")
    return content


def adapted_layers(model: Any) -> list[str]:
    """Return the classes of the layers under the adapter (``Linear``, ``Linear8bitLt``, ...), none without one."""
    layers = (getattr(module, "base_layer", None) for module in model.modules())
    return sorted({type(layer).__name__ for layer in layers if layer is not None})
