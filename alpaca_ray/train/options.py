"""Values that only the libraries can judge, answered with the flag that gave them, before any weights load."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings

# The optimisers that are bitsandbytes' own, by transformers' names.
BITSANDBYTES = frozenset(
    {"adamw_bnb_8bit", "adamw_8bit", "lion_8bit", "lion_32bit", "ademamix", "ademamix_8bit", "rmsprop_bnb"}
    | {"rmsprop_bnb_8bit", "rmsprop_bnb_32bit"}
    | {f"paged_{name}_{bits}bit" for name in ("adamw", "lion", "ademamix") for bits in (8, 32)}
)


def check_noise(settings: TrainSettings) -> None:
    """Check NEFTune's alpha. Pure.

    Raises:
        SettingsError: it is no number, or below 0.
    """
    alpha = settings.training_arguments.get("neftune_noise_alpha")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0):
        raise SettingsError(f"--neftune_noise_alpha {alpha}: must be a number, 0 or above (5 to 15 in the paper)")


def check_sharded_optimiser(settings: TrainSettings) -> None:
    """Check that the optimiser can step weights that FSDP has sharded. Pure.

    Raises:
        SettingsError: it is one of bitsandbytes', whose kernels know no such weights.
    """
    if settings.fsdp.strip() and settings.optim in BITSANDBYTES:
        raise SettingsError(
            f"--fsdp with --optim {settings.optim}: bitsandbytes' optimisers cannot step sharded weights: give "
            "--optim adamw_torch, or --deepspeed in place of --fsdp"
        )


def beyond_positions(settings: TrainSettings, config: Any) -> list[str]:
    """Return the warning for samples that may be longer than the model has positions. Pure.

    Args:
        config: the model's configuration.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or settings.model_max_length <= positions:
        return []
    return [
        f"warning: --model_max_length {settings.model_max_length} is beyond the {positions} positions of the model: "
        "records that are longer than that may fail or be learnt badly"
    ]


def pages_nothing(settings: TrainSettings, *, use_gpu: bool) -> list[str]:
    """Return the warning for a paged optimiser where there is nothing to page. Pure."""
    if use_gpu or not settings.optim.startswith("paged_"):
        return []
    name = settings.optim
    return [f"--optim {name} pages nothing on the CPU: it runs as {name.removeprefix('paged_')} does"]


def one_group(settings: TrainSettings) -> list[str]:
    """Return the warning for FSDP's hybrid sharding, which would shard within groups of workers. Pure."""
    instead = {"hybrid_shard": "full_shard", "hybrid_shard_zero2": "shard_grad_op"}
    return [
        f"--fsdp {name} runs as {instead[name]} does: the model is sharded over all workers, not within groups of them"
        for name in settings.fsdp.split()
        if name in instead
    ]


def check_names(arguments: Mapping[str, Any]) -> None:
    """Check that the schedule and the optimiser exist. Imports transformers.

    Raises:
        SettingsError: one does not; those that exist are listed.
    """
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for flag, kind in (("lr_scheduler_type", SchedulerType), ("optim", OptimizerNames)):
        value, known = arguments[flag], [str(member.value) for member in kind]
        if value not in known:
            close = difflib.get_close_matches(str(value), known, n=1)
            hint = f"did you mean {close[0]}? There are" if close else "there are"
            raise SettingsError(f"--{flag} {value}: {hint} {', '.join(known)}")


def check_library(arguments: Any) -> None:
    """Make optimiser and schedule as a worker will: for a package that lacks, or an option that does not fit.

    Args:
        arguments: TrainingArguments.

    Raises:
        SettingsError: one of them cannot be made.
    """
    import torch
    from transformers import Trainer
    from transformers.optimization import get_scheduler

    flag = f"--optim {arguments.optim.value}"
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError, TypeError) as error:
        if "to pass a" not in str(error):  # those that look at the model (GaLore, LOMO) are made once there is one
            raise SettingsError(f"{flag}: {' '.join(str(error).split())}") from error
    options = arguments.lr_scheduler_kwargs
    flag = f"--lr_scheduler_type {arguments.lr_scheduler_type.value}"
    if options is not None and not isinstance(options, dict):
        raise SettingsError(f"--lr_scheduler_kwargs {options}: must be a mapping, such as '{{\"num_cycles\": 2}}'")
    single = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    try:
        get_scheduler(arguments.lr_scheduler_type, single, 1, 100, options)
    except (ValueError, TypeError) as error:
        given = f" with --lr_scheduler_kwargs {options}" if options else " needs --lr_scheduler_kwargs"
        reason = " ".join(str(error).split()).partition("() ")[2] or str(error)
        raise SettingsError(f"{flag}{given}: {reason}") from error
