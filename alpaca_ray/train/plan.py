"""From settings and what the cluster has to what will run: device, precision, batches. Pure."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from typing import Literal

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.dialects import LORA_FLAGS
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.settings.training_arguments import RETIRED
from alpaca_ray.train import options
from alpaca_ray.train.modes import check_modes
from alpaca_ray.train.split import split_batch

Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Plan:
    """What a run does on the cluster it found."""

    mode: Literal["lora", "full"]
    why_mode: str
    use_gpu: bool
    precision: Precision
    tf32: bool | None
    workers: int  # with elastic workers: the largest number
    least_workers: int
    step_samples: int  # over all workers, whatever their number
    micro_batch: int
    accumulation: int  # with that many workers
    fsdp: bool
    cpus_per_worker: int
    gpus_per_worker: int  # where GPUs are used
    trackers: list[str]
    wandb_project: str | None
    warnings: list[str] = field(default_factory=list)

    def workers_text(self, device: str = "") -> str:
        """Return how many workers there are, of which device if named, in words."""
        number = str(self.workers) if self.workers == self.least_workers else f"{self.least_workers} to {self.workers}"
        return " ".join(part for part in (number, device, "workers" if self.workers > 1 else "worker") if part)

    def lines(self) -> list[str]:
        """Return the plan as lines for the terminal."""
        device = "GPU" if self.use_gpu else "CPU"
        split = f"{self.micro_batch} x {self.accumulation} x {self.workers} workers"
        if self.micro_batch * self.accumulation * self.workers != self.step_samples:
            split = f"at most {split}, unevenly"
        return [
            f"mode: {'LoRA adapter' if self.mode == 'lora' else 'full fine-tuning'} ({self.why_mode})",
            f"runs on: {self.workers_text(device)}, {self.precision}",
            f"batch: {self.step_samples} samples a step ({split})",
            *(f"warning: {line}" for line in self.warnings),
        ]


def make_plan(
    settings: TrainSettings, *, has_gpus: bool, begun_with: int | None = None, may_be_uneven: bool = False
) -> Plan:
    """Resolve what depends on the machine.

    Args:
        settings: the resolved settings.
        has_gpus: whether the cluster has a GPU or can start a node that has one.
        begun_with: samples of a step of the run that goes on; see ``split_batch``, also for ``may_be_uneven``.

    Raises:
        SettingsError: the batch cannot be split, or something asked for by name cannot run here.
    """
    mode, why = settings.mode
    if settings.full:
        for flag in LORA_FLAGS:
            if settings.was_given(flag) and getattr(settings, flag) is not False:
                raise SettingsError(f"--full and --{flag} contradict each other: full fine-tuning has no adapter")
    use_gpu = has_gpus if settings.use_gpu == "auto" else bool(settings.use_gpu)
    warnings: list[str] = []
    precision = _precision(settings, use_gpu, warnings)
    tf32 = settings.tf32
    if tf32 is not None and not use_gpu:
        if tf32:
            warnings.append("--tf32 has no effect without a GPU")
        tf32 = None
    fsdp = bool(settings.fsdp.strip())
    check_modes(settings, use_gpu=use_gpu)
    options.check_noise(settings)
    options.check_sharded_optimiser(settings)
    warnings += options.pages_nothing(settings, use_gpu=use_gpu)
    warnings += options.one_group(settings)
    if fsdp and settings.workers[1] == 1:
        warnings.append("--fsdp shards nothing with one worker: give --num_workers 2 or more")
    for name in sorted(settings.training_arguments.keys() & RETIRED):
        warnings.append(f"--{name} has no effect: TrainingArguments no longer has it")
    split = split_batch(settings, begun_with=begun_with, may_be_uneven=may_be_uneven)
    trackers, project = _trackers(settings, warnings)
    return Plan(
        mode=mode,
        why_mode=why,
        use_gpu=use_gpu,
        precision=precision,
        tf32=tf32,
        workers=settings.workers[1],
        least_workers=settings.workers[0],
        step_samples=split.step_samples,
        micro_batch=split.micro_batch,
        accumulation=split.accumulation,
        fsdp=fsdp,
        cpus_per_worker=settings.cpus_per_worker or 1,
        gpus_per_worker=settings.gpus_per_worker,
        trackers=trackers,
        wandb_project=project,
        warnings=warnings,
    )


def _precision(settings: TrainSettings, use_gpu: bool, warnings: list[str]) -> Precision:
    if settings.bf16:
        return "bf16"
    if not settings.fp16:
        return "fp32"
    if use_gpu:
        return "fp16"
    if settings.was_given("fp16"):
        raise SettingsError("--fp16 needs a GPU, and this runs on the CPU: use --bf16, or give neither (float32)")
    warnings.append("fp16 is the default of this dialect and needs a GPU: bf16 is used on the CPU")
    return "bf16"


def _trackers(settings: TrainSettings, warnings: list[str]) -> tuple[list[str], str | None]:
    """Return the trackers, and the project of the one that needs it."""
    trackers = [name for name in settings.report_to if name != "none"]
    project = settings.wandb_project
    if not project and settings.spoken == "Alpaca-LoRA" and not settings.was_given("report_to"):
        project = os.environ.get("WANDB_PROJECT") or None  # which turns wandb on there, as in finetune.py
        if project and importlib.util.find_spec("wandb") is None:
            warnings.append(f"WANDB_PROJECT={project} has no effect: the package wandb is not installed")
            project = None
    if project and "wandb" not in trackers:
        trackers.append("wandb")
    return trackers, project
