"""What a run will need of each worker, known from the model's configuration alone. docs/training.md has the formulas.

Imports torch and transformers inside its functions; no weights are ever loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpaca_ray.errors import AlpacaRayError, EstimateError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import speed
from alpaca_ray.train.largest import Batch
from alpaca_ray.train.plan import Plan

if TYPE_CHECKING:
    from alpaca_ray.train.simulate import Attention

# Bytes of state a trained parameter, by the names of TrainingArguments; what is not here is taken as AdamW's.
_STATE_BYTES = (
    (("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "ademamix_8bit", "paged_ademamix_8bit"), 2.0),
    (("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1.0),
    (("lion_32bit", "paged_lion_32bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "adagrad"), 4.0),
    (("adafactor", "sgd"), 0.0),
)
_ADAMW_BYTES = 8.0
# NF4 with double quantisation: half a byte, a byte of scale for 64 values, a float of scale's scale for 256 of those
# (Dettmers et al., "QLoRA", 2023, section 3).
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
_CUBLAS_WORKSPACE = 32 * 1024**2  # what torch reserves for it on Hopper; a fourth of that on older GPUs


@dataclass(frozen=True)
class Estimate:
    """Parameter counts, and bytes of one worker. ``passes`` is what forward and backward pass add at most.

    ``peak`` is that of one GPU where a worker has several.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimiser: int
    passes: int
    peak: int
    checkpoint: int
    batch: Batch


def estimate(
    settings: TrainSettings, plan: Plan, source: str, batch: Batch, *, deepspeed: Mapping[str, Any] | None = None
) -> Estimate:
    """Return what a worker needs. Takes seconds, whatever the model's size.

    Args:
        source: the model's name or folder.
        batch: the largest forward pass.
        deepspeed: the content of its configuration, where one is used.

    Raises:
        ModelError: the configuration is of no causal language model that transformers knows.
        SettingsError: the attention asked for cannot be had.
        EstimateError: its forward pass needs values, not shapes alone, or anything else keeps it from being simulated.
    """
    try:
        return _estimate(settings, plan, source, batch, deepspeed)
    except AlpacaRayError:
        raise
    except Exception as error:  # other people's models, run in a way that they were not written for
        reason = " ".join(str(error).split())[:200]
        raise EstimateError(f"{type(error).__name__}: {reason}") from error


def _estimate(
    settings: TrainSettings, plan: Plan, source: str, batch: Batch, deepspeed: Mapping[str, Any] | None
) -> Estimate:
    import torch

    from alpaca_ray.train import lora
    from alpaca_ray.train.adapter import add_adapter
    from alpaca_ray.train.architecture import build_skeleton
    from alpaca_ray.train.decoder import freeze_beside_text
    from alpaca_ray.train.simulate import simulate

    compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[plan.precision]
    stage = _zero_stage(deepspeed)
    sharded = plan.workers if plan.fsdp or stage == 3 else 1
    states = plan.workers if sharded > 1 or stage >= 1 else 1
    quantised = settings.load_8bit or settings.load_4bit
    model = build_skeleton(settings, source)
    model.config.use_cache = False
    attention = _attention(settings, plan, model)
    # What shards its weights casts them as it gathers them; else full fine-tuning computes through autocast.
    model.to(torch.float32 if plan.mode == "full" and sharded == 1 else compute)
    linear = _linear_weights(model) if quantised else {}
    if quantised:  # peft's prepare_model_for_kbit_training: what is not quantised becomes float32
        _cast_rest(model, linear)
    if plan.mode == "full":
        freeze_beside_text(model)
    with torch.device("meta"):
        if plan.mode == "lora":
            if settings.gradient_checkpointing:
                model.enable_input_require_grads()
            model = add_adapter(settings, model)
            if settings.fused_lora and not quantised and not plan.fsdp and not settings.deepspeed:
                lora.fuse(model)
    parts = {id(part): part for part in model.parameters()}.values()
    total = sum(part.numel() for part in parts)
    trainable = sum(part.numel() for part in parts if part.requires_grad)
    blocks = _block_bytes(model)
    full = plan.mode == "full"
    step = simulate(
        model,
        rows=batch.rows,
        tokens=batch.tokens,
        learnt=batch.learnt,
        lengths=batch.lengths or (batch.tokens,),
        attention=attention,
        autocast=compute if compute != torch.float32 and (not full or sharded == 1) else None,
        checkpointing=settings.gradient_checkpointing,
        accumulates=plan.accumulation > 1,
    )
    weights = step.weights
    passes = step.passes + (_CUBLAS_WORKSPACE if plan.use_gpu else 0)
    gradients = 4 * trainable if full else step.gradients
    if quantised:
        count = sum(linear.values())
        width = 2 if compute != torch.float32 else 4
        weights += int(count * ((1.0 if settings.load_8bit else _NF4_BYTES) - width))
        passes += 0 if settings.load_8bit else width * max(linear.values(), default=0)  # one weight, dequantised
    if sharded > 1:
        weights = (4 * total if full else weights) // sharded
        passes += 2 * max(blocks)  # the block that computes and the one that is fetched meanwhile
        passes -= step.gradients - step.gradients // sharded
    elif plan.workers > 1:
        passes += gradients  # the buckets in which DDP exchanges them
    gradients //= sharded if sharded > 1 else (states if stage >= 2 else 1)
    optimiser = int(trainable * _state_bytes(settings.optim)) // states
    spare = gradients if plan.use_gpu and "fused" not in settings.optim else 0  # foreach's temporary results
    held = gradients if plan.accumulation > 1 else 0
    peak = weights + optimiser + max(held + passes, gradients + spare)
    if plan.use_gpu:
        peak //= plan.gpus_per_worker  # a model that is spread over them holds about as much on each
    saved = 4 * trainable if full else step.gradients
    checkpoint = saved + int(trainable * _state_bytes(settings.optim))
    return Estimate(total, trainable, weights, gradients, optimiser, passes, peak, checkpoint, batch)


def _attention(settings: TrainSettings, plan: Plan, model: Any) -> Attention:
    """Return how the run keeps samples apart, in the simulation's terms; gives the model the library's, where asked."""
    name, packing = speed.attention_of(settings, plan, model.config.model_type)
    if packing == "borders":
        if name in speed.FLASH_PACKAGES:
            return "kernel"
        return "own kernel" if plan.use_gpu and plan.precision != "fp32" else "own"
    if name in ("eager", "sdpa"):
        speed.set_attention(model, name)
    return "padding" if packing == "none" else "mask"


def _state_bytes(optim: str) -> float:
    return next((size for names, size in _STATE_BYTES if optim in names), _ADAMW_BYTES)


def _zero_stage(config: Mapping[str, Any] | None) -> int:
    stage = ((config or {}).get("zero_optimization") or {}).get("stage", 0)
    return stage if isinstance(stage, int) else 0


def _linear_weights(model: Any) -> dict[str, int]:
    """Return the sizes of the weights that bitsandbytes quantises: of every linear layer but the head."""
    import torch

    head = model.get_output_embeddings()
    return {
        path: part.weight.numel()
        for path, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    }


def _cast_rest(model: Any, linear: dict[str, int]) -> None:
    import torch

    for path, part in model.named_modules():
        for name, value in part.named_parameters(recurse=False):
            if not (path in linear and name == "weight"):
                value.data = torch.empty_like(value, dtype=torch.float32)


def _block_bytes(model: Any) -> list[int]:
    """Return the bytes of each decoder layer, and of what lies outside of them."""
    import torch

    lists: list[Any] = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    layers: Any = sorted(lists, key=len)[-1] if lists else []
    sizes = [sum(part.nbytes for part in layer.parameters()) for layer in layers]
    whole = sum(part.nbytes for part in {id(part): part for part in model.parameters()}.values())
    return [*sizes, whole - sum(sizes)]
