"""Which ways of training go together. Pure."""

from __future__ import annotations

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings


def check_modes(settings: TrainSettings, *, use_gpu: bool) -> None:
    """Check that the ways of dividing and quantising the model that were asked for can be had together.

    Raises:
        SettingsError: they cannot.
    """
    sharded = "fsdp" if settings.fsdp.strip() else "deepspeed" if settings.deepspeed else None
    least, most = settings.workers
    if sharded == "fsdp" and settings.load_8bit:
        raise SettingsError("--fsdp with --load_8bit: 8-bit weights cannot be sharded: give --load_4bit, or no --fsdp")
    if sharded == "deepspeed" and (settings.load_8bit or settings.load_4bit):
        bits = "load_8bit" if settings.load_8bit else "load_4bit"
        raise SettingsError(
            f"--deepspeed with --{bits}: it cannot divide quantised weights: give --fsdp and --load_4bit"
        )
    if sharded == "deepspeed" and least != most:
        raise SettingsError(
            f"--deepspeed with --num_workers {settings.num_workers}: its state cannot be divided anew when the number "
            "changes: give one number, or --fsdp"
        )
    spread = settings.gpus_per_worker
    if spread == 1:
        return
    if not use_gpu:
        raise SettingsError(f"--gpus_per_worker {spread}: there is no GPU to spread the model over: leave it out")
    if sharded:
        raise SettingsError(
            f"--gpus_per_worker {spread} and --{sharded} contradict each other: a model is spread over one worker's "
            "GPUs, or sharded over workers that have one each"
        )
    if most > 1:
        raise SettingsError(
            f"--gpus_per_worker {spread} with --num_workers {settings.num_workers}: DDP cannot wrap a model that is "
            "spread over several GPUs: give one worker, or --fsdp"
        )
