"""How the samples of a step are divided over workers and forward passes. Pure.

The samples of a step belong to the run, not to its workers: where another number of workers takes over (``--resume``,
elastic workers, a lost node), the step keeps its samples and each worker takes as many passes as that needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings


@dataclass(frozen=True)
class Split:
    """A step's samples: how many, and how the largest number of workers takes them."""

    step_samples: int
    micro_batch: int
    accumulation: int


def passes(step_samples: int, micro_batch: int, workers: int) -> int:
    """Return the forward passes that each worker takes for a step of so many samples."""
    return -(-step_samples // (micro_batch * workers))


def split_batch(settings: TrainSettings, *, begun_with: int | None = None, may_be_uneven: bool = False) -> Split:
    """Return how a step is divided.

    As in Alpaca-LoRA: accumulation is the global batch over the micro-batch, over the number of workers, and each
    division must be exact, except for elastic workers and for a run that goes on. In our dialect a micro-batch that was
    not given adapts to a small or odd batch.

    Args:
        begun_with: samples of a step of the run that goes on; kept unless ``--batch_size`` says otherwise.
        may_be_uneven: the run may go on with another number of workers than it began with.

    Raises:
        SettingsError: the global batch cannot be split so.
    """
    micro, total = settings.per_device_train_batch_size, settings.batch_size
    least, workers = settings.workers
    may_be_uneven = may_be_uneven or least != workers
    by_hand = settings.was_given("gradient_accumulation_steps")
    if total is None or (by_hand and not settings.was_given("batch_size")):
        share = micro * settings.gradient_accumulation_steps
        if begun_with is not None and begun_with % share == 0:
            return Split(begun_with, micro, passes(begun_with, micro, workers))
        return Split(share * workers, micro, settings.gradient_accumulation_steps)
    if settings.spoken == "ours" and not settings.was_given("per_device_train_batch_size"):
        share = passes(total, 1, workers)
        if total % workers == 0:
            micro = max(size for size in range(1, min(micro, share) + 1) if share % size == 0)
        elif may_be_uneven:
            micro = min(micro, share)
    if may_be_uneven:
        return Split(total, micro, passes(total, micro, workers))
    if total % (micro * workers):
        flag = "--micro_batch_size" if settings.spoken == "Alpaca-LoRA" else "--per_device_train_batch_size"
        raise SettingsError(
            f"--batch_size {total} cannot be split: it must be a multiple of {flag} {micro} times "
            f"--num_workers {workers}, which is {micro * workers}"
        )
    accumulation = total // (micro * workers)
    if by_hand and settings.gradient_accumulation_steps != accumulation:
        raise SettingsError(
            f"--batch_size {total} means {accumulation} forward passes a step, and --gradient_accumulation_steps says "
            f"{settings.gradient_accumulation_steps}: give one of them"
        )
    return Split(total, micro, accumulation)
