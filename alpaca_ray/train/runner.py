"""The training stage: checks in the driver, then the workers under Ray Train's TorchTrainer."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from alpaca_ray import cluster, manifest, models, storage
from alpaca_ray.console import say, show_settings
from alpaca_ray.errors import AlpacaRayError, SettingsError, find_cause
from alpaca_ray.prompts import PromptTemplate, load_template
from alpaca_ray.records import Record, source_path, write_json
from alpaca_ray.report.plots import save_loss_curve
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import arguments, data, progress, publish
from alpaca_ray.train.loop import Job, run_worker
from alpaca_ray.train.plan import Plan, make_plan

# Settings that say how this one command was run, not what it trained.
_NOT_SAVED = {"resume", "overwrite", "dry_run", "resume_from_checkpoint"}


def train(settings: TrainSettings) -> dict[str, Any] | None:
    """Run the stage and return the content of its ``run.json`` (None after a dry run).

    Raises:
        AlpacaRayError: bad input (before anything is loaded or written), or a run that failed.
    """
    times = {"start": time.time()}
    models.check_model_name(settings.model_name, flag=settings.model_flag)
    template = load_template(settings.prompt_template)
    restart_from = _restart_point(settings)
    records = data.read_all(settings.data_path)
    training, heldout = data.split(records, settings.val_set_size, seed=settings.seed)
    # What does not depend on the cluster is checked before Ray starts; a GPU is assumed, so nothing is refused for want
    # of one.
    arguments.translate(settings, make_plan(settings, has_gpus=True), "", has_validation=bool(heldout))

    # The run's own lines come from metrics.jsonl; what libraries print in workers stays in Ray's log folder.
    cluster.connect(minimum_cpus=max(2, settings.num_workers * (settings.cpus_per_worker or 1)), show_workers=False)
    times["cluster"] = time.time()
    plan = make_plan(settings, has_gpus=cluster.has_gpus())
    arguments.check_trackers(plan.trackers)
    show_settings("train: settings", settings)
    for line in plan.lines():
        say(line)
    say(f"records: {len(training)} to learn, {len(heldout)} held out")
    output = storage.resolve_output(settings.output_dir, several_nodes=cluster.node_count() > 1)
    translated = arguments.translate(settings, plan, str(output), has_validation=bool(heldout))
    if settings.dry_run:
        say(yaml.safe_dump(_saved(settings), sort_keys=False, allow_unicode=True).rstrip())
        say(f"dry run: nothing was loaded or written; output would go to {storage.location(output)}")
        return None
    if _needs_library_check(settings):
        arguments.check(translated)
    if settings.model_name != models.EMBEDDED and not Path(settings.model_name).expanduser().is_dir():
        models.load_config(settings.model_name, flag=settings.model_flag)  # a hub id that nobody can reach
    bundle = _bundle(plan)
    cluster.check_fits([bundle] * plan.workers, f"training with {plan.workers} workers")

    existed = output.is_dir()
    publish.claim(output, resume=settings.resume, overwrite=settings.overwrite)
    if settings.resume or restart_from:
        newest = publish.newest_checkpoint(output) or restart_from
        say(f"Restarting from {newest}" if newest else f"no checkpoint in {output} yet: starting from the beginning")
    job = _prepare(settings, plan, template, translated, output, restart_from, (training, heldout), times)
    try:
        with progress.follow(output, say):
            result = _run(job, bundle)
    except BaseException:
        _clean(output, existed=existed)
        raise
    return _finish(job, result, output)


def _run(job: Job, bundle: dict[str, float]) -> dict[str, Any]:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end of the run is noticed
    if cluster.node_count() == 1:  # nothing to watch: the only node takes the driver with it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    plan = job.plan
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.use_gpu, resources_per_worker=bundle, placement_strategy="PACK"
        ),
        # Sharded weights are gathered over the CPU, which nccl alone cannot do.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if plan.use_gpu else "gloo"),
        run_config=RunConfig(
            name="run",
            storage_path=str(Path(job.output_dir) / publish.RAY_FOLDER),
            failure_config=FailureConfig(max_failures=job.settings.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        known = find_cause(error)
        if known is None:
            raise
        raise known from error
    values = result.return_value or {}
    if isinstance(values.get("error"), AlpacaRayError):
        raise values["error"]
    return dict(values)


def _prepare(
    settings: TrainSettings,
    plan: Plan,
    template: PromptTemplate,
    translated: dict[str, Any],
    output: Path,
    restart_from: Path | None,
    records: tuple[list[Record], list[Record]],
    times: dict[str, float],
) -> Job:
    """Write what the run needs into its folder, and return the workers' job."""
    ray_folder = output / publish.RAY_FOLDER
    shutil.rmtree(ray_folder, ignore_errors=True)  # Ray Train's own bookkeeping of an earlier attempt; ours resumes
    ray_folder.mkdir()
    claim = f"{publish.RAY_FOLDER}/claim-{uuid.uuid4().hex}"
    (output / claim).touch()
    storage.write_atomic(
        output / publish.SETTINGS_FILE, yaml.safe_dump(_saved(settings), sort_keys=False, allow_unicode=True)
    )
    storage.write_atomic(output / data.HELDOUT_FILE, write_json([record["id"] for record in records[1]]))
    return Job(
        settings=settings,
        plan=plan,
        template=template,
        arguments=translated,
        output_dir=str(output),
        claim=claim,
        restart_from=str(restart_from) if restart_from else None,
        records=ray.put(records),
        model_source=_model_source(settings.model_name),
        times=times,
    )


def _finish(job: Job, result: dict[str, Any], output: Path) -> dict[str, Any]:
    settings, plan = job.settings, job.plan
    save_loss_curve(progress.read_metrics(output), output / progress.PLOT_FILE)
    weights = "adapter_model.safetensors" if plan.mode == "lora" else "config.json"
    shutil.rmtree(output / publish.RAY_FOLDER, ignore_errors=True)
    content = manifest.write_manifest(
        output,
        "train",
        settings=_saved(settings),
        inputs=[source_path(source) for source in settings.data_path],
        outputs=[weights],
        seed=settings.seed,
        prompt_template=settings.prompt_template,
        base_model=settings.model_name,
        mode=plan.mode,
        precision=plan.precision,
        workers=plan.workers,
        seconds=round(time.time() - job.times["start"], 1),
        **result,
    )
    before, after = result["validation_loss_before"], result["validation_loss_after"]
    if before is not None and after is not None:
        say(f"validation loss: {before:.4f} before, {after:.4f} after {result['steps']} steps")
    share = result["trainable_parameters"] / max(1, result["parameters"])
    say(f"trained {result['trainable_parameters']:,} of {result['parameters']:,} parameters ({share:.2%})")
    what = "adapter" if plan.mode == "lora" else "model"
    say(f"{what} saved to {storage.location(output)}")
    return content


def _restart_point(settings: TrainSettings) -> Path | None:
    if not settings.resume_from_checkpoint:
        return None
    path = Path(settings.resume_from_checkpoint).expanduser().resolve()
    if not path.is_dir():
        raise SettingsError(f"Checkpoint {settings.resume_from_checkpoint} not found (--resume_from_checkpoint)")
    if not any((path / name).is_file() for name in (publish.STATE_FILE, "adapter_model.safetensors")):
        raise SettingsError(
            f"--resume_from_checkpoint {settings.resume_from_checkpoint}: holds neither {publish.STATE_FILE} (a full "
            "state) nor adapter_model.safetensors (adapter weights)"
        )
    return path


def _model_source(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name != models.EMBEDDED and path.is_dir() else name


def _needs_library_check(settings: TrainSettings) -> bool:
    """Whether a value was given that only the library can judge; asking it costs seconds of imports."""
    judged = ("training_arguments", "optim", "lr_scheduler_type", "eval_steps", "save_steps", "load_best_model_at_end")
    return any(settings.was_given(name) for name in judged)


def _bundle(plan: Plan) -> dict[str, float]:
    return {"CPU": plan.cpus_per_worker, **({"GPU": 1} if plan.use_gpu else {})}


def _saved(settings: TrainSettings) -> dict[str, Any]:
    """Return the resolved settings as a YAML file that ``--config`` takes back."""
    values = {name: value for name, value in settings.to_dict().items() if value is not None and value != {}}
    values.update(values.pop("training_arguments", {}))
    dropped = set(_NOT_SAVED)
    if settings.mode[0] == "full":  # beside --model_name_or_path they would ask for LoRA
        dropped |= {"lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}
    return {name: value for name, value in values.items() if name not in dropped}


def _clean(output: Path, *, existed: bool) -> None:
    """After a failure, remove what no resume needs, and the folder where nothing at all came of it."""
    shutil.rmtree(output / publish.RAY_FOLDER, ignore_errors=True)
    if not existed and not publish.newest_checkpoint(output) and not progress.read_metrics(output):
        for name in (publish.SETTINGS_FILE, data.HELDOUT_FILE):
            (output / name).unlink(missing_ok=True)
        if not any(output.iterdir()):
            output.rmdir()
