"""The model of a run: loaded, quantised, its tokens and adapter added. Runs inside a worker."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.models import load_model
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.adapter import add_adapter
from alpaca_ray.train.decoder import freeze_beside_text
from alpaca_ray.train.plan import Plan
from alpaca_ray.train.tokenizer import own_size


def build_model(settings: TrainSettings, plan: Plan, tokenizer: Any, source: str) -> Any:
    """Load the base model from ``source`` and make the weights trainable that the plan asks for.

    Under ZeRO-3 the TrainingArguments must exist already: transformers then divides each weight as it loads.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch

    compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.precision]
    quantised = settings.load_8bit or settings.load_4bit
    options: dict[str, Any] = {"cache_dir": settings.cache_dir}
    if plan.gpus_per_worker > 1:
        options["device_map"] = "auto"  # layer by layer over the worker's GPUs, filled evenly
    elif quantised and plan.use_gpu:
        options["device_map"] = {"": os.environ.get("ACCELERATE_TORCH_DEVICE", "cuda:0")}  # set by Ray Train
    if quantised:
        options["quantization_config"] = quantization(settings, compute, sharded=plan.fsdp)
    if settings.deepspeed and not plan.use_gpu:
        from alpaca_ray.train.wrapping import start_deepspeed_on_cpu

        start_deepspeed_on_cpu()
    # Full fine-tuning keeps float32 weights and computes in lower precision; a frozen base needs no such copy.
    options["dtype"] = torch.float32 if plan.mode == "full" else compute
    try:
        model = load_model(source, flag=settings.model_flag, **options)
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"{settings.model_flag} {settings.model_name}: cannot be loaded: {error}") from error
    model.config.use_cache = False
    if plan.gpus_per_worker > 1:  # as finetune.py of Alpaca-LoRA: keeps Trainer from replicating or moving it
        model.is_parallelizable = True
        model.model_parallel = True
    if plan.mode == "full":
        grow_embeddings(model, len(tokenizer), own=own_size(settings, source))
        freeze_beside_text(model)
        return model
    if quantised:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
    elif settings.gradient_checkpointing:
        model.enable_input_require_grads()
    return add_adapter(settings, model)


def grow_embeddings(model: Any, size: int, *, own: int | None = None) -> None:
    """Give ``size`` tokens a row each; rows of new tokens become the mean of the others, as Stanford's.

    Args:
        own: how many tokens the tokenizer came with. Many models have spare rows, which no training has seen: a token
            that was added takes one of those.
    """
    import torch

    weight = model.get_input_embeddings().weight
    rows = getattr(weight, "ds_shape", weight.shape)[0]
    first = rows if own is None else min(own, rows)
    if size <= first:
        return
    if size > rows:
        model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = embeddings.weight
            with _writable(weight):
                if weight.numel():  # under ZeRO-3 every worker takes part, and the first one's values count
                    weight[first:size] = weight[:first].mean(dim=0, keepdim=True)


def _writable(weight: Any) -> AbstractContextManager[Any]:
    """Make a weight that ZeRO-3 divided whole for a change."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([weight], modifier_rank=0)


def quantization(settings: TrainSettings, compute: Any, *, sharded: bool = False) -> Any:
    """Return the bitsandbytes configuration: 8 bits (LLM.int8), or NF4 with double quantisation (QLoRA).

    Args:
        compute: the dtype of the products.
        sharded: FSDP2 is going to divide the weights. It leaves integer storage whole, and casts other storage than
            that of its own precision, which would destroy the packed values.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if settings.load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute if sharded else torch.uint8,
    )


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return how many parameters the model has, and how many of them are trained.

    Quantised ones are counted unpacked, and ones that ZeRO-3 divides whole.
    """
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(total), int(trainable)
    sizes = [(getattr(part, "ds_numel", part.numel()), part.requires_grad) for part in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
