"""What accelerate makes of the workers, corrected where it would wrap the model wrongly. Imports accelerate."""

from __future__ import annotations

from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin


def correct_accelerator(trainer: Any) -> None:
    """Give a Trainer's accelerator the wrapper that its arguments ask for.

    On the CPU accelerate does not take an FSDP or DeepSpeed plugin and would silently fall back to DDP, while both run
    over gloo. The model of a single worker it would wrap in DDP, which exchanges gradients with nobody, and refuses one
    that is spread over several GPUs.
    """
    arguments, accelerator = trainer.args, trainer.accelerator
    if arguments.deepspeed_plugin is not None:
        if arguments.use_cpu:
            _enable_deepspeed(trainer)
    elif arguments.fsdp_plugin_args is not None:
        if arguments.use_cpu:
            _enable_fsdp(trainer)
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
    trainer.accelerator.state.fsdp_plugin = plugin
    trainer.is_fsdp_enabled = True
    _set_distributed_type(trainer.accelerator, DistributedType.FSDP)


def _set_distributed_type(accelerator: Any, kind: DistributedType) -> None:
    accelerator.state.distributed_type = kind
    # Every later AcceleratorState() copies the value of the underlying PartialState over its own.
    PartialState._shared_state["distributed_type"] = kind
