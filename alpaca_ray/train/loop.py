"""What one worker does: build, train, evaluate, publish. Runs inside Ray Train, and not in the main thread."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from alpaca_ray.errors import AlpacaRayError, OutputError
from alpaca_ray.full_disk import cannot_be_written, naming_full_disk
from alpaca_ray.quiet import quiet_libraries
from alpaca_ray.train import background, progress, publish
from alpaca_ray.train.agree import first_error
from alpaca_ray.train.builder import build, settle
from alpaca_ray.train.held import hardware, length_counts, memory_report
from alpaca_ray.train.job import Job


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train as ``config["job"]`` says. Returns the run's results, or ``{"error": ...}``.

    Errors of ours that arise before training starts are returned, not raised: Ray Train would start the workers anew
    for an exception, and a wrong setting does not mend itself.
    """
    from alpaca_ray.train import board  # transformers' integrations: seconds of imports, which the driver is spared

    job: Job = config["job"]
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    quiet_libraries(use_gpu=job.plan.use_gpu)
    error: AlpacaRayError | None = publish.not_shared(Path(job.output_dir), job.token)
    if (first := first_error(error)) is not None:  # on every worker, before any of them loads weights
        return {"error": first}
    built: tuple[Any, dict[str, Any]] | None = None
    try:
        with naming_full_disk(job.output_dir):
            built = build(job)
    except AlpacaRayError as caught:
        error = caught
    first = first_error(error)
    if first is not None or built is None:
        return {"error": first}
    trainer, extras = built
    try:
        if trainer.args.process_index == 0:
            background.sweep(Path(job.output_dir))
            for name in (progress.METRICS_FILE, progress.SAMPLES_FILE):
                progress.rewind(Path(job.output_dir), extras["step"] if extras["resume"] else -1, name)
        return _train(job, trainer, extras)
    except AlpacaRayError as caught:  # raised on every worker alike; starting anew would end the same way
        return {"error": caught}
    except Exception as caught:
        full = cannot_be_written(caught, job.output_dir)
        if full is None:
            raise
        if trainer.args.world_size == 1:
            return {"error": full}
        raise full from caught  # on this worker alone: Ray Train must end those that wait for it
    finally:
        trainer.finish_writing()
        board.close(trainer)


def _train(job: Job, trainer: Any, extras: dict[str, Any]) -> dict[str, Any]:
    resume: Path | None = extras["resume"]
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    reporter = extras["reporter"]
    output = Path(job.output_dir)
    settle(job)
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    published_step = int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step
    if trainer.eval_dataset is not None and reporter.last_validation_step != published_step:
        trainer.evaluate()
    _save(job, trainer, output)
    extras["prover"].check_saved(output)
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
        "padding_share": reporter.padding_share,
        "checkpoints": trainer.checkpoints_saved,
        "checkpoint_seconds": round(trainer.checkpoint_seconds, 3),
        "wrapper": type(trainer.model_wrapped).__name__,
        "adapted_layers": extras["layers"],
        "proof": extras["prover"].report,
        "memory": memory_report(job, trainer, extras["memory_before"], packed=extras["packing"] != "none"),
        "lengths": length_counts(trainer.train_dataset),
        "hardware": hardware(job.plan.use_gpu),
    }


def _save(job: Job, trainer: Any, output: Path) -> None:
    """Publish the trained weights; every worker takes part, since sharded weights are gathered, and rank 0 writes."""
    last = "adapter_config.json" if job.plan.mode == "lora" else "config.json"
    error: AlpacaRayError | None = None
    if trainer.args.process_index != 0:
        trainer.save_model(str(output))  # takes part in the gathering; only the process that may save writes
    else:
        trainer.model.config.use_cache = True  # a reader of config.json is going to generate
        try:
            if not trainer.still_ours():
                raise OutputError(f"{output}: another run has taken this folder over: no model was written")
            with naming_full_disk(job.output_dir), publish.publish_files(output, last) as staging:
                trainer.save_model(str(staging))
                for name in ("training_args.bin", "README.md"):  # the settings stand in readable form beside the model
                    (staging / name).unlink(missing_ok=True)
                if job.template_used:  # a model that only saw chats is served with its chat template
                    (staging / publish.TEMPLATE_FILE).write_text(job.template.to_json(), encoding="utf-8")
        except AlpacaRayError as caught:
            error = caught
    if (first := first_error(error)) is not None:  # nobody goes on before it is there
        raise first
