"""Everything a worker needs before its first step: tokenizer, samples, model, Trainer. Runs inside Ray Train."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from alpaca_ray.errors import SettingsError, TrainingError
from alpaca_ray.machine import cores
from alpaca_ray.train import claim, memory, progress, publish, tf32, whole
from alpaca_ray.train.asked import asked
from alpaca_ray.train.job import Job
from alpaca_ray.train.split import passes
from alpaca_ray.train.trackers import place_trackers

_WITHOUT_VALIDATION = {"eval_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None}


def build(job: Job) -> tuple[Any, dict[str, Any]]:
    import ray
    import ray.train
    from transformers import TrainingArguments

    from alpaca_ray.train import board, speed
    from alpaca_ray.train.adapter import adapted_layers, load_adapter_weights
    from alpaca_ray.train.architecture import check_names
    from alpaca_ray.train.callbacks import Reporter
    from alpaca_ray.train.collate import collator
    from alpaca_ray.train.encode_ahead import encoding_options
    from alpaca_ray.train.encoded import FOLDER, load_or_encode
    from alpaca_ray.train.model import build_model, parameter_counts
    from alpaca_ray.train.preemption import Survival
    from alpaca_ray.train.proof import Prover
    from alpaca_ray.train.seen import SeenSamples
    from alpaca_ray.train.sentinel import Sentinel
    from alpaca_ray.train.tokenizer import build_tokenizer, padding
    from alpaca_ray.train.trainer import AlpacaTrainer
    from alpaca_ray.train.zero import check_resume

    settings, plan = job.settings, job.plan
    times = {**job.times, "worker": time.time()}
    output = Path(job.output_dir)
    context = ray.train.get_context()
    threads = settings.threads or settings.cpus_per_worker or cores() // context.get_local_world_size()
    torch.set_num_threads(max(1, threads))
    for name, value in {"PROJECT": plan.wandb_project, "WATCH": settings.wandb_watch}.items():
        if value:
            os.environ[f"WANDB_{name}"] = value
    place_trackers(output, plan.trackers)
    if settings.wandb_log_model:
        os.environ["WANDB_LOG_MODEL"] = settings.wandb_log_model

    tokenizer = build_tokenizer(settings, job.model_source)
    training, heldout = ray.get(job.records)
    kept, encoding = output / FOLDER, encoding_options(settings)
    samples = load_or_encode(kept, training, tokenizer, job.template, **encoding)
    heldout_samples = load_or_encode(kept, heldout, tokenizer, job.template, may_be_empty=True, **encoding)

    resume = publish.resume_point(output)
    if resume is None and job.restart_from:
        resume = Path(job.restart_from)
    check_names(settings, job.model_source, resume=resume)
    weights_alone = None
    if resume is not None and not (resume / publish.STATE_FILE).is_file():
        if plan.mode != "lora":
            raise SettingsError(f"--resume_from_checkpoint {resume}: holds no {publish.STATE_FILE}")
        weights_alone, resume = resume, None
    if resume is not None:
        check_resume(resume, deepspeed=bool(settings.deepspeed), workers=context.get_world_size())
        if not settings.deepspeed:
            whole.check_fsdp(resume, fsdp=plan.fsdp)
    has_validation = heldout_samples.any_learnt()
    # Without a response token in any held-out record there is no validation loss, which the driver could not know.
    without: dict[str, Any] = {} if has_validation or not heldout else dict(_WITHOUT_VALIDATION)
    if without and job.arguments["save_strategy"] == "best":
        without["save_strategy"] = "no"
    known = [row for row in progress.read_metrics(output) if row.get("step") == 0 and "eval_loss" in row]
    try:
        arguments = TrainingArguments(
            **{
                **tf32.usable(job.arguments),
                **without,
                "eval_on_start": has_validation and not (resume is not None and known),
                "gradient_accumulation_steps": passes(plan.step_samples, plan.micro_batch, context.get_world_size()),
            }
        )
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise SettingsError(f"TrainingArguments refuses a value: {error}") from error
    torch.manual_seed(settings.seed)  # every worker must start its adapter from the same random weights
    before = memory.in_use(plan.use_gpu)
    if context.get_world_rank() == 0:
        progress.phase(output, "loading the model")
    model = asked(build_model, settings, plan, tokenizer, job.model_source)
    if weights_alone is not None:
        load_adapter_weights(model, weights_alone)
    total, trainable = parameter_counts(model)
    pad_id, side = padding(settings, tokenizer)
    packing = speed.prepare(model, settings, plan)
    sentinel = Sentinel(output, [record["id"] for record in training])
    reporter = Reporter(output, parameters=total, mode=plan.mode, gpus_per_worker=plan.gpus_per_worker)
    prover = Prover(settings, plan, packing)
    survival = Survival(watch=job.may_lose_nodes, on_first_step=lambda: settle(job))
    trainer = asked(
        AlpacaTrainer,
        model=model,
        args=arguments,
        samples=SeenSamples.numbered(samples) if settings.record_samples else samples,
        heldout=heldout_samples if has_validation else [],
        collate=collator(packing, pad_id=pad_id, side="left" if side == "left" else "right"),
        tokenizer=tokenizer,
        callbacks=[sentinel, reporter, prover, survival],
        group_by_length=settings.group_by_length,
        step_samples=plan.step_samples,
    )
    sentinel.trainer = reporter.trainer = prover.trainer = survival.trainer = trainer
    if settings.record_samples:
        trainer.seen = SeenSamples(output, [record["id"] for record in training], context.get_world_rank())
        trainer.add_callback(trainer.seen)
    trainer.still_ours = (output / job.token).is_file
    trainer.on_checkpoint = report_checkpoint
    board.take_over(trainer, _step_of(resume) if resume else -1)
    times["model"] = time.time()
    return trainer, {
        "times": times,
        "resume": resume,
        "step": _step_of(resume),
        "validates": has_validation,
        "reporter": reporter,
        "prover": prover,
        "memory_before": before,
        "packing": packing,
        "parameters": total,
        "trainable": trainable,
        "threads": torch.get_num_threads(),
        "tokens": sum(samples.lengths),
        "layers": adapted_layers(model),
    }


def settle(job: Job) -> None:
    """Give up what the folder held before, on the first worker: the run has taken a step, or has none left to take.

    A worker that has outlived its run leaves it to the next one.
    """
    import ray.train

    if ray.train.get_context().get_world_rank() == 0 and (Path(job.output_dir) / job.token).is_file():
        claim.settle(Path(job.output_dir))


def report_checkpoint(checkpoint: Path) -> None:
    """Report a checkpoint, which lies in the run's storage, to Ray Train; every worker must take part."""
    import ray.train
    from ray.train.v2.api.report_config import CheckpointUploadMode

    first = ray.train.get_context().get_world_rank() == 0
    ray.train.report(
        {"checkpoint": checkpoint.name},
        checkpoint=ray.train.Checkpoint.from_directory(str(checkpoint)) if first else None,
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _step_of(checkpoint: Path | None) -> int:
    from transformers import TrainerState

    if checkpoint is None:
        return 0
    try:
        return int(TrainerState.load_from_json(str(checkpoint / publish.STATE_FILE)).global_step)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{checkpoint / publish.STATE_FILE}: cannot be read: {error}") from error
