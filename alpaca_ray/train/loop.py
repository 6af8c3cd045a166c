"""What one worker does: build, train, evaluate, publish. Runs inside Ray Train, and not in the main thread."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alpaca_ray.errors import AlpacaRayError, OutputError, SettingsError, TrainingError
from alpaca_ray.machine import cores
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.quiet import quiet_libraries
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import claim, progress, publish
from alpaca_ray.train.plan import Plan


@dataclass(frozen=True)
class Job:
    """Everything a worker needs, resolved in the driver."""

    settings: TrainSettings
    plan: Plan
    template: PromptTemplate
    template_used: bool  # whether any record to learn is no chat
    arguments: dict[str, Any]
    output_dir: str
    token: str  # name of a file in output_dir that every worker must see
    restart_from: str | None
    records: Any  # ObjectRef of (training records, held-out records)
    model_source: str  # the model's name, or its absolute path: a worker has another working directory
    times: dict[str, float]  # wall-clock seconds at which each stage of the start was reached


_WITHOUT_VALIDATION = {"eval_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None}


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as ``config["job"]`` says. Returns the run's results, or ``{"error": ...}``.

    Errors of ours that arise before training starts are returned, not raised: Ray Train would start the workers anew
    for an exception, and a wrong setting does not mend itself.
    """
    job: Job = config["job"]
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    quiet_libraries(use_gpu=job.plan.use_gpu)
    error: AlpacaRayError | None = None
    built: tuple[Any, dict[str, Any]] | None = None
    try:
        built = _build(job)
    except AlpacaRayError as caught:
        error = caught
    first = _first_error(error)
    if first is not None or built is None:
        return {"error": first}
    trainer, extras = built
    if trainer.args.process_index == 0:  # from here on the run is under way, and replaces what the folder held
        claim.settle(Path(job.output_dir))
        progress.rewind(Path(job.output_dir), extras["step"] if extras["resume"] else -1)
    try:
        return _train(job, trainer, extras)
    except TrainingError as caught:  # raised on every worker alike; starting anew would end the same way
        return {"error": caught}


def _build(job: Job) -> tuple[Any, dict[str, Any]]:
    import ray
    import ray.train
    from transformers import TrainingArguments

    from alpaca_ray.train.callbacks import Reporter
    from alpaca_ray.train.collate import collator, packing_of
    from alpaca_ray.train.encode import encode, has_labels
    from alpaca_ray.train.model import (
        adapted_layers,
        build_model,
        build_tokenizer,
        load_adapter_weights,
        padding,
        parameter_counts,
    )
    from alpaca_ray.train.trainer import AlpacaTrainer

    settings, plan = job.settings, job.plan
    times = {**job.times, "worker": time.time()}
    output = Path(job.output_dir)
    if not (output / job.token).is_file():
        raise OutputError(
            f"--output_dir {output} is not the same folder on every node: give one on storage that the nodes share"
        )
    context = ray.train.get_context()
    threads = settings.threads or settings.cpus_per_worker or cores() // context.get_local_world_size()
    torch.set_num_threads(max(1, threads))
    for name, value in {"PROJECT": plan.wandb_project, "WATCH": settings.wandb_watch}.items():
        if value:
            os.environ[f"WANDB_{name}"] = value
    if settings.wandb_log_model:
        os.environ["WANDB_LOG_MODEL"] = settings.wandb_log_model

    tokenizer = build_tokenizer(settings, job.model_source)
    training, heldout = ray.get(job.records)
    encoding: dict[str, Any] = {
        "max_length": settings.model_max_length,
        "train_on_inputs": settings.train_on_inputs,
        "add_eos": settings.ends_samples,
    }
    samples = encode(training, tokenizer, job.template, **encoding)
    heldout_samples = encode(heldout, tokenizer, job.template, may_be_empty=True, **encoding)

    torch.manual_seed(settings.seed)  # every worker must start its adapter from the same random weights
    model = build_model(settings, plan, tokenizer, job.model_source, local_rank=context.get_local_rank())
    total, trainable = parameter_counts(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    pad_id, side = padding(settings, tokenizer)
    packing = packing_of(base.config.model_type, base.config._attn_implementation) if settings.packing else "none"

    resume = publish.newest_checkpoint(output)
    if resume is None and job.restart_from:
        resume = Path(job.restart_from)
    if resume is not None and not (resume / publish.STATE_FILE).is_file():
        if plan.mode != "lora":
            raise SettingsError(f"--resume_from_checkpoint {resume}: holds no {publish.STATE_FILE}")
        load_adapter_weights(model, resume)
        resume = None
    has_validation = any(has_labels(sample) for sample in heldout_samples)
    # Without a response token in any held-out record there is no validation loss, which the driver could not know.
    without: dict[str, Any] = {} if has_validation or not heldout else dict(_WITHOUT_VALIDATION)
    if without and job.arguments["save_strategy"] == "best":
        without["save_strategy"] = "no"
    known = [row for row in progress.read_metrics(output) if row.get("step") == 0 and "eval_loss" in row]
    try:
        arguments = TrainingArguments(
            **{**job.arguments, **without, "eval_on_start": has_validation and not (resume is not None and known)}
        )
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise SettingsError(f"TrainingArguments refuses a value: {error}") from error
    reporter = Reporter(output)
    trainer = AlpacaTrainer(
        model=model,
        args=arguments,
        samples=samples,
        heldout=heldout_samples if has_validation else [],
        collate=collator(packing, pad_id=pad_id, side="left" if side == "left" else "right"),
        tokenizer=tokenizer,
        callbacks=[reporter],
        group_by_length=settings.group_by_length,
    )
    reporter.trainer = trainer
    times["model"] = time.time()
    return trainer, {
        "times": times,
        "resume": resume,
        "step": _step_of(resume),
        "validates": has_validation,
        "reporter": reporter,
        "packing": packing,
        "parameters": total,
        "trainable": trainable,
        "threads": torch.get_num_threads(),
        "tokens": sum(len(sample["input_ids"]) for sample in samples),
        "layers": adapted_layers(model),
    }


def _train(job: Job, trainer: Any, extras: dict[str, Any]) -> dict[str, Any]:
    resume: Path | None = extras["resume"]
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    reporter = extras["reporter"]
    output = Path(job.output_dir)
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    published_step = int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step
    if trainer.eval_dataset is not None and reporter.last_validation_step != published_step:
        trainer.evaluate()
    _save(job, trainer, output)
    first = next((row for row in progress.read_metrics(output) if "eval_loss" in row), None)
    return {
        "steps": trainer.state.global_step,
        "validation_loss_before": first["eval_loss"] if first and first["step"] == 0 else None,
        "validation_loss_after": reporter.last_validation_loss,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "validated": extras["validates"],
        "packing": extras["packing"],
        "parameters": extras["parameters"],
        "trainable_parameters": extras["trainable"],
        "threads": extras["threads"],
        "training_tokens": extras["tokens"],
        "times": {**extras["times"], "first_step": reporter.first_step_at},
        "tokens_per_second": reporter.mean_rate,
        "wrapper": type(trainer.model_wrapped).__name__,
        "adapted_layers": extras["layers"],
    }


def _save(job: Job, trainer: Any, output: Path) -> None:
    """Publish the trained weights; every worker takes part, since sharded weights are gathered, and rank 0 writes."""
    last = "adapter_config.json" if job.plan.mode == "lora" else "config.json"
    if trainer.args.process_index != 0:
        trainer.save_model(str(output))  # takes part in the gathering; only the process that may save writes
        _barrier()
        return
    trainer.model.config.use_cache = True  # a reader of config.json is going to generate
    with publish.publish_files(output, last) as staging:
        trainer.save_model(str(staging))
        for name in ("training_args.bin", "README.md"):  # the settings stand in readable form beside the model
            (staging / name).unlink(missing_ok=True)
        if job.template_used:  # a model that only saw chats is served with its chat template
            (staging / publish.TEMPLATE_FILE).write_text(job.template.to_json(), encoding="utf-8")
    _barrier()


def _first_error(error: AlpacaRayError | None) -> AlpacaRayError | None:
    """Return the first worker's error, on every worker: one that failed must not leave the others waiting."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return error
    errors: list[AlpacaRayError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next((found for found in errors if found is not None), None)


def _barrier() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _step_of(checkpoint: Path | None) -> int:
    from transformers import TrainerState

    if checkpoint is None:
        return 0
    try:
        return int(TrainerState.load_from_json(str(checkpoint / publish.STATE_FILE)).global_step)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{checkpoint / publish.STATE_FILE}: cannot be read: {error}") from error
