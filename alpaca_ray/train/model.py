"""The model of a run: loaded, quantised, its tokens and adapter added. Runs inside a worker."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError, SettingsError
from alpaca_ray.models import load_model, load_tokenizer
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.plan import Plan

ALL_LINEAR = "all-linear"

# What Stanford's trainer gives a tokenizer that lacks them.
_STANFORD_TOKENS = {"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
# PEFT's own, PEFT's older one, and what Alpaca-LoRA reads of a checkpoint folder.
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")


def build_tokenizer(settings: TrainSettings, source: str) -> Any:
    """Load the tokenizer of the model at ``source``, with Stanford's missing tokens added in full fine-tuning.

    Raises:
        ModelError: it cannot be loaded, or has no end token.
    """
    tokenizer = load_tokenizer(source, flag=settings.model_flag, cache_dir=settings.cache_dir)
    if settings.spoken == "Stanford" and settings.mode[0] == "full":
        missing = {name: token for name, token in _STANFORD_TOKENS.items() if getattr(tokenizer, name) is None}
        if missing:
            tokenizer.add_special_tokens(missing)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{settings.model_flag} {settings.model_name}: its tokenizer has no end token")
    return tokenizer


def padding(settings: TrainSettings, tokenizer: Any) -> tuple[int, str]:
    """Return the padding id and side: 0 on the left in Alpaca-LoRA's dialect, else the tokenizer's own on the right."""
    if settings.spoken == "Alpaca-LoRA":
        return 0, "left"
    pad = tokenizer.pad_token_id
    return (tokenizer.eos_token_id if pad is None else pad), "right"


def build_model(settings: TrainSettings, plan: Plan, tokenizer: Any, source: str, *, local_rank: int = 0) -> Any:
    """Load the base model from ``source`` and make the weights trainable that the plan asks for.

    Raises:
        ModelError: it cannot be loaded.
        SettingsError: a target module or a layer class that the model does not have.
    """
    import torch

    compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.precision]
    options: dict[str, Any] = {"cache_dir": settings.cache_dir}
    if settings.load_8bit or settings.load_4bit:
        options["quantization_config"] = _quantization(settings, compute)
        if plan.use_gpu:
            options["device_map"] = {"": local_rank}
    # Full fine-tuning keeps float32 weights and computes in lower precision; a frozen base needs no such copy.
    options["dtype"] = torch.float32 if plan.mode == "full" else compute
    try:
        model = load_model(source, flag=settings.model_flag, **options)
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"{settings.model_flag} {settings.model_name}: cannot be loaded: {error}") from error
    model.config.use_cache = False
    if plan.fsdp and settings.fsdp_transformer_layer_cls_to_wrap:
        _check_layer_classes(model, settings.fsdp_transformer_layer_cls_to_wrap.split(","))
    if plan.mode == "full":
        grow_embeddings(model, len(tokenizer))
        return model
    if settings.load_8bit or settings.load_4bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
    elif settings.gradient_checkpointing:
        model.enable_input_require_grads()
    return _add_adapter(settings, model)


def grow_embeddings(model: Any, size: int) -> None:
    """Grow input and output embeddings to ``size`` tokens; new rows are the mean of the old ones, as Stanford's."""
    import torch

    old = model.get_input_embeddings().weight.shape[0]
    if size <= old:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = embeddings.weight
            weight[old:] = weight[:old].mean(dim=0, keepdim=True)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Load adapter weights alone (no optimiser state) into a model that has an adapter.

    Raises:
        SettingsError: the folder holds none, or the weights are of another adapter.
    """
    from peft import set_peft_model_state_dict

    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise SettingsError(
            f"--resume_from_checkpoint {folder}: holds neither trainer_state.json nor {ADAPTER_FILES[0]}"
        )
    try:
        result = set_peft_model_state_dict(model, _read_weights(file))
    except RuntimeError as error:
        raise SettingsError(f"--resume_from_checkpoint {file}: does not fit this adapter: {error}") from error
    if result.unexpected_keys:
        raise SettingsError(
            f"--resume_from_checkpoint {file}: holds {result.unexpected_keys[0]}, which this adapter does not have"
        )


def _read_weights(file: Path) -> dict[str, Any]:
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


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return how many parameters the model has, and how many of them are trained (quantised ones counted unpacked)."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(total), int(trainable)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapted_layers(model: Any) -> list[str]:
    """Return the classes of the layers under the adapter (``Linear``, ``Linear8bitLt``, ...), none without one."""
    layers = (getattr(module, "base_layer", None) for module in model.modules())
    return sorted({type(layer).__name__ for layer in layers if layer is not None})


def _quantization(settings: TrainSettings, compute: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if settings.load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _add_adapter(settings: TrainSettings, model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    targets: list[str] | str = settings.lora_target_modules
    if targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    else:
        _check_targets(model, settings.lora_target_modules)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    # The name the user gave, never a path inside a worker: a reader on another machine must be able to follow it.
    for adapter in model.peft_config.values():
        adapter.base_model_name_or_path = settings.model_name
    # peft would ask the hub whether the vocabulary was resized, by a name that only we may know; LoRA never does that.
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _check_targets(model: Any, names: list[str]) -> None:
    import torch

    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv1d) or "Conv1D" in str(type(module))
    ]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths} - {"lm_head"}))
            raise SettingsError(f"--lora_target_modules {name}: the model has no such layer; it has {known}")


def _check_layer_classes(model: Any, names: list[str]) -> None:
    classes = {type(module).__name__ for module in model.modules()}
    for name in names:
        if name not in classes:
            layers = ", ".join(sorted(found for found in classes if "Layer" in found or "Block" in found))
            raise SettingsError(
                f"--fsdp_transformer_layer_cls_to_wrap {name}: the model has no such class; it has {layers}"
            )
