"""The memory that a run took, held against what was estimated for it. Runs inside a worker, after the last step."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.train import memory
from alpaca_ray.train.encode import Sample
from alpaca_ray.train.estimate import estimate
from alpaca_ray.train.job import Job
from alpaca_ray.train.largest import largest_batch

_KINDS = {
    True: "torch.cuda.max_memory_allocated",
    # Beside tensors it has what the C library keeps of freed ones, and the pages of the weights' file as they are read.
    False: "resident memory of the process at its highest, above what it was before the model: with the libraries' own "
    "buffers, which the estimate leaves out",
}


def memory_report(job: Job, trainer: Any, before: int, *, packed: bool) -> dict[str, Any]:
    """Return the highest peak of any worker and the estimate for the largest batch. Every worker must take part.

    Args:
        before: what ``memory.in_use`` returned before the model was loaded.
    """
    settings, plan = job.settings, job.plan
    found = memory.peak(plan.use_gpu) - (0 if plan.use_gpu else before)
    if dist.is_initialized() and dist.get_world_size() > 1:
        highest = torch.tensor(found, dtype=torch.int64, device=trainer.args.device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        found = int(highest.item())
    report: dict[str, Any] = {"measured": _KINDS[plan.use_gpu], "peak_bytes": found}
    if trainer.args.process_index != 0:
        return report
    if job.arguments.get("deepspeed"):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # else a model that is built from here on would be sharded, by this worker alone
    batch = largest_batch(
        trainer.train_dataset, plan, packed=packed, group_by_length=settings.group_by_length, seed=settings.seed
    )
    try:
        needs = estimate(settings, plan, job.model_source, batch, deepspeed=job.arguments.get("deepspeed"))
    except AlpacaRayError as error:  # the run is done and saved: an estimate must not undo that
        return {**report, "estimated_bytes": None, "not_estimated": str(error)}
    return {**report, "estimated_bytes": needs.peak, "estimate_over_measured": round(needs.peak / max(1, found), 3)}


def hardware(use_gpu: bool) -> str:
    """Return what this worker runs on."""
    if use_gpu:
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()} a worker"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads a worker"


def length_counts(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return (tokens, samples of that length), the shortest first."""
    return sorted(Counter(len(sample["input_ids"]) for sample in samples).items())
