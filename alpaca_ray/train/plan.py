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

Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Plan:
    """What a run does on the cluster it found."""

    mode: Literal["lora", "full"]
    why_mode: str
    use_gpu: bool
    precision: Precision
    tf32: bool | None
    workers: int
    micro_batch: int
    accumulation: int
    fsdp: bool
    cpus_per_worker: int
    trackers: list[str]
    wandb_project: str | None
    warnings: list[str] = field(default_factory=list)

    @property
    def step_samples(self) -> int:
        """Samples a step holds over all workers."""
        return self.micro_batch * self.accumulation * self.workers

    def lines(self) -> list[str]:
        """Return the plan as lines for the terminal."""
        device = "GPU" if self.use_gpu else "CPU"
        split = f"{self.micro_batch} x {self.accumulation} x {self.workers} workers"
        return [
            f"mode: {'LoRA adapter' if self.mode == 'lora' else 'full fine-tuning'} ({self.why_mode})",
            f"runs on: {self.workers} {device} worker{'s' if self.workers > 1 else ''}, {self.precision}",
            f"batch: {self.step_samples} samples a step ({split})",
            *(f"warning: {line}" for line in self.warnings),
        ]


def make_plan(settings: TrainSettings, *, has_gpus: bool) -> Plan:
    """Resolve what depends on the machine.

    Args:
        settings: the resolved settings.
        has_gpus: whether the cluster has a GPU or can start a node that has one.

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
    if fsdp and (settings.load_8bit or settings.load_4bit):
        raise SettingsError("--fsdp with a quantised base is not supported: leave --load_8bit / --load_4bit out")
    if settings.deepspeed and not use_gpu:
        raise SettingsError("--deepspeed runs on GPUs only: use --fsdp, or neither, on the CPU")
    for name in sorted(settings.training_arguments.keys() & RETIRED):
        warnings.append(f"--{name} has no effect: TrainingArguments no longer has it")
    micro, accumulation = split_batch(settings)
    trackers, project = _trackers(settings, warnings)
    return Plan(
        mode=mode,
        why_mode=why,
        use_gpu=use_gpu,
        precision=precision,
        tf32=tf32,
        workers=settings.num_workers,
        micro_batch=micro,
        accumulation=accumulation,
        fsdp=fsdp,
        cpus_per_worker=settings.cpus_per_worker or 1,
        trackers=trackers,
        wandb_project=project,
        warnings=warnings,
    )


def split_batch(settings: TrainSettings) -> tuple[int, int]:
    """Return samples a forward pass, and forward passes a step, of one worker.

    As in Alpaca-LoRA: accumulation is the global batch over the micro-batch, over the number of workers; here each
    division must be exact. In our dialect a micro-batch that was not given adapts to a small or odd batch.

    Raises:
        SettingsError: the global batch cannot be split so.
    """
    micro, total, workers = settings.per_device_train_batch_size, settings.batch_size, settings.num_workers
    by_hand = settings.was_given("gradient_accumulation_steps")
    if total is None or (by_hand and not settings.was_given("batch_size")):
        return micro, settings.gradient_accumulation_steps
    if settings.spoken == "ours" and not settings.was_given("per_device_train_batch_size") and total % workers == 0:
        share = total // workers
        micro = max(size for size in range(1, min(micro, share) + 1) if share % size == 0)
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
    return micro, accumulation


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
