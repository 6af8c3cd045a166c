"""What accelerate makes of the workers, corrected where it would wrap the model wrongly. Imports accelerate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy


def correct_accelerator(trainer: Any) -> None:
    """Give a Trainer's accelerator the wrapper that its arguments ask for.

    On the CPU accelerate does not take an FSDP or DeepSpeed plugin and would silently fall back to DDP, while both run
    over gloo. The model of a single worker it would wrap in DDP, which exchanges gradients with nobody, and refuses one
    that is spread over several GPUs. Under FSDP it would round the loss.
    """
    arguments, accelerator = trainer.args, trainer.accelerator
    if arguments.deepspeed_plugin is not None:
        if arguments.use_cpu:
            _enable_deepspeed(trainer)
    elif arguments.fsdp_plugin_args is not None:
        if arguments.use_cpu:
            _enable_fsdp(trainer)
        _keep_sums_wide(accelerator.state.fsdp_plugin)
    elif accelerator.num_processes == 1:
        _set_distributed_type(accelerator, DistributedType.NO)


def start_deepspeed_on_cpu() -> None:
    """Tell DeepSpeed of the workers' process group, before ZeRO-3 divides the first weight.

    With a GPU accelerate does it while the TrainingArguments are made.
    """
    import deepspeed

    # A shared-memory collective for inference: training never calls it, and building it needs a compiler and time.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def _enable_deepspeed(trainer: Any) -> None:
    arguments, accelerator = trainer.args, trainer.accelerator
    plugin = arguments.deepspeed_plugin
    plugin.set_mixed_precision(arguments.mixed_precision)
    plugin.select(_from_accelerator_state=True)
    accelerator.state.deepspeed_plugins = plugin
    accelerator.native_amp = False  # the engine casts weights and inputs itself; autocast would do it once more
    trainer.is_deepspeed_enabled = True
    _set_distributed_type(accelerator, DistributedType.DEEPSPEED)


def _enable_fsdp(trainer: Any) -> None:
    plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    if trainer.args.mixed_precision != "no":
        plugin.set_mixed_precision(trainer.args.mixed_precision)
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # pinned for a GPU, which is not there
    trainer.accelerator.state.fsdp_plugin = plugin
    trainer.is_fsdp_enabled = True
    _set_distributed_type(trainer.accelerator, DistributedType.FSDP)


def _keep_sums_wide(plugin: Any) -> None:
    """Let FSDP2 hand the loss on as it is, and add gradients up in float32, as DDP does.

    accelerate makes both as narrow as the products. The summed loss of a batch would be rounded to 8 bits in bfloat16,
    and be infinite in float16 from 65,520 on; gradients would lose bits with each micro-batch and worker.
    """
    policy = plugin.mixed_precision_policy
    if isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def _set_distributed_type(accelerator: Any, kind: DistributedType) -> None:
    accelerator.state.distributed_type = kind
    # Every later AcceleratorState() copies the value of the underlying PartialState over its own.
    PartialState._shared_state["distributed_type"] = kind
