"""The training stage: checks in the driver, then the workers under Ray Train's TorchTrainer."""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import ray

from alpaca_ray import cluster, manifest, models, storage
from alpaca_ray.console import say, show_settings
from alpaca_ray.errors import SettingsError
from alpaca_ray.full_disk import naming_full_disk
from alpaca_ray.machine import cores
from alpaca_ray.prompts import load_template
from alpaca_ray.records import Record, source_path, write_json
from alpaca_ray.report.plots import save_loss_curve
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import (
    arguments,
    background,
    chats,
    claim,
    data,
    dry_run,
    early,
    finish,
    options,
    progress,
    publish,
    saved,
    speed,
    tf32,
)
from alpaca_ray.train import identity as run_identity
from alpaca_ray.train.encode_ahead import encode_ahead
from alpaca_ray.train.encoded import FOLDER as ENCODED_FOLDER
from alpaca_ray.train.job import Job
from alpaca_ray.train.launch import launch
from alpaca_ray.train.plan import Plan, make_plan
from alpaca_ray.train.restart import origin, restart_point, with_own_checkpoint
from alpaca_ray.train.stopped import saying_where
from alpaca_ray.train.tokenizer import build_tokenizer


def train(settings: TrainSettings) -> dict[str, Any] | None:
    """Run the stage and return the content of its ``run.json`` (None after a dry run).

    Raises:
        AlpacaRayError: bad input (before anything is loaded or written), or a run that failed.
    """
    times = {"start": time.time()}
    models.check_model_name(settings.model_name, flag=settings.model_flag)
    models.check_reachable(settings.model_name, flag=settings.model_flag, cache_dir=settings.cache_dir)
    template = load_template(settings.prompt_template)
    settings = with_own_checkpoint(settings)
    restart_from = restart_point(settings)
    records = data.read_all(settings.data_path)
    training, heldout = data.split(records, settings.val_set_size, seed=settings.seed)
    # What does not depend on the cluster is checked before Ray starts; a GPU is assumed, so nothing is refused for want
    # of one.
    assumed = make_plan(settings, has_gpus=True, may_be_uneven=settings.resume)
    arguments.translate(settings, assumed, "", has_validation=bool(heldout))

    if not settings.dry_run:
        source, known = _model_source(settings.model_name), (training, heldout)
        early.check(settings, template, known, source, restart_from, one_node=cluster.starts_own())

    # The run's own lines come from metrics.jsonl; what libraries print in workers stays in Ray's log folder.
    wanted = settings.workers[1] * (settings.cpus_per_worker or 1)
    cluster.connect(minimum_cpus=max(2, min(wanted, 2 * cores())), show_workers=False)  # more would only wait in turn
    times["cluster"] = time.time()
    output = storage.resolve_output(settings.output_dir, several_nodes=cluster.node_count() > 1)
    begun_with = run_identity.step_samples(claim.kept_in(output)) if settings.resume else None
    plan = make_plan(settings, has_gpus=cluster.has_gpus(), begun_with=begun_with, may_be_uneven=begun_with is not None)
    plan = tf32.without(plan, cluster.node_kinds())
    arguments.check_trackers(plan.trackers)
    show_settings("train: settings", settings)
    for line in plan.lines():
        say(line)
    say(f"records: {len(training)} to learn, {len(heldout)} held out")
    if settings.overwrite and restart_from and restart_from.is_relative_to(output.resolve()):
        raise SettingsError(
            f"--resume_from_checkpoint {restart_from} lies in --output_dir, which --overwrite clears: give --resume, "
            "or another folder"
        )
    # A worker has another working directory.
    cache_dir = str(Path(settings.cache_dir).expanduser().absolute()) if settings.cache_dir else None
    translated = arguments.translate(settings, plan, str(output), has_validation=bool(heldout))
    if _needs_library_check(settings):
        arguments.check(translated)
    as_instructions = _chats_as_instructions(settings, records)
    if as_instructions:
        say(f"chats take the prompt template {settings.prompt_template}: the model's tokenizer has no chat template")
    if settings.dry_run:
        say(saved.resolved_yaml(settings))
        source = _model_source(settings.model_name)
        about = (settings, plan, template, training, source, _bundle(plan))
        for line in dry_run.dry_run_lines(*about, deepspeed=translated["deepspeed"]):
            say(line)
        say(f"dry run: nothing was loaded or written; output would go to {storage.location(output)}")
        return None
    if settings.model_name != models.EMBEDDED:  # which is there, and packs
        config = models.load_config(settings.model_name, flag=settings.model_flag, cache_dir=cache_dir)
        for line in speed.not_packed(settings, plan, config.model_type) + options.beyond_positions(settings, config):
            say(line)
    bundle = _bundle(plan)
    least = plan.least_workers
    cluster.check_fits([bundle] * least, f"training with {least} worker{'s' if least > 1 else ''}")

    job = Job(
        settings=settings.model_copy(update={"cache_dir": cache_dir}),
        plan=plan,
        template=template,
        template_used=as_instructions or any(not record.get("messages") for record in training),
        arguments=translated,
        output_dir=str(output),
        token=f"{publish.RAY_FOLDER}/claim-{uuid.uuid4().hex}",
        restart_from=str(restart_from) if restart_from else None,
        may_lose_nodes=cluster.may_lose_nodes(),
        records=ray.put((training, heldout)),
        model_source=_model_source(settings.model_name),
        times=times,
    )
    described = (settings, plan, template, (training, heldout), job.model_source)
    identity = run_identity.identity(*described, origin(restart_from))

    def examine() -> None:
        if settings.resume:
            identity[run_identity.ORIGIN] = run_identity.check_same_run(output, identity, heldout)

    finished = _finished(output, settings, plan, len(training)) if settings.resume else None
    if finished:
        examine()
        say(f"{finished['steps']} steps are done: nothing to do (a larger --max_steps or --num_train_epochs goes on)")
        say(f"{'adapter' if plan.mode == 'lora' else 'model'} saved to {storage.location(output)}")
        return finished

    with (
        naming_full_disk(f"--output_dir {output}"),
        claim.claimed(output, resume=settings.resume, overwrite=settings.overwrite, examine=examine, tell=say),
        saying_where(output, overwrite=settings.overwrite),
    ):
        if settings.resume or restart_from:
            newest = publish.resume_point(output, say) or restart_from
            none_yet = f"no checkpoint in {output} yet: starting from the beginning"
            say(f"Restarting from {newest}" if newest else none_yet)
        _prepare(job, output, identity, heldout)
        if encode_ahead(output, training, job.settings, template, job.model_source):
            say(f"{len(training)} records encoded")
        say(f"starting {plan.workers_text()}")
        with progress.follow(output, say):
            result = launch(job, bundle)
        return _finish(job, result, output)


def _finished(output: Path, settings: TrainSettings, plan: Plan, samples: int) -> dict[str, Any] | None:
    """Return a folder's ``run.json`` where its run has taken all steps that are asked for, and its model is there."""
    content = manifest.read_manifest(output)
    if content is None or content.get("stage") != "train":
        return None
    enough = content.get("steps", 0) >= dry_run.total_steps(settings, plan, samples)
    return content if enough and finish.is_there(output, content) else None


def _prepare(job: Job, output: Path, identity: dict[str, Any], heldout: list[Record]) -> None:
    """Write what the run needs into its folder."""
    ray_folder = output / publish.RAY_FOLDER
    publish.remove_bookkeeping(output)
    background.sweep(output)
    shutil.rmtree(ray_folder, ignore_errors=True)  # Ray Train's own bookkeeping of an earlier attempt; ours resumes
    ray_folder.mkdir()
    (output / job.token).touch()
    begun_from = identity[run_identity.ORIGIN]
    storage.write_atomic(output / publish.SETTINGS_FILE, saved.given_yaml(job.settings, begun_from=begun_from))
    storage.write_atomic(output / data.HELDOUT_FILE, write_json([record["id"] for record in heldout]))
    run_identity.write(output, identity)


def _finish(job: Job, result: dict[str, Any], output: Path) -> dict[str, Any]:
    settings, plan = job.settings, job.plan
    save_loss_curve(progress.read_metrics(output), output / progress.PLOT_FILE)
    result = finish.with_lengths(result, output, settings.model_max_length)
    weights = "adapter_model.safetensors" if plan.mode == "lora" else "config.json"
    for folder in (publish.RAY_FOLDER, ENCODED_FOLDER):
        shutil.rmtree(output / folder, ignore_errors=True)
    publish.remove_bookkeeping(output)
    content = manifest.write_manifest(
        output,
        "train",
        settings=settings.to_dict(),
        inputs=[source_path(source) for source in settings.data_path],
        outputs=[weights],
        seed=settings.seed,
        prompt_template=settings.prompt_template if job.template_used else None,
        base_model=settings.model_name,
        mode=plan.mode,
        precision=plan.precision,
        workers=plan.workers,
        step_samples=plan.step_samples,
        heldout_records=finish.heldout_count(output),
        seconds=round(time.time() - job.times["start"], 1),
        **result,
    )
    finish.write_card(output, content, settings)
    before, after = result["validation_loss_before"], result["validation_loss_after"]
    if job.settings.val_set_size and not result["validated"]:
        say(
            f"warning: no held-out record has a response token within --model_max_length {settings.model_max_length}: "
            "no validation loss was taken"
        )
    if before is not None and after is not None:
        say(f"validation loss: {before:.4f} before, {after:.4f} after {result['steps']} steps")
    share = result["trainable_parameters"] / max(1, result["parameters"])
    say(f"trained {result['trainable_parameters']:,} of {result['parameters']:,} parameters ({share:.2%})")
    for line in finish.closing_lines(content):
        say(line)
    what = "adapter" if plan.mode == "lora" else "model"
    say(f"{what} saved to {storage.location(output)}")
    return content


def _model_source(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if name != models.EMBEDDED and path.is_dir() else name


def _chats_as_instructions(settings: TrainSettings, records: list[Record]) -> bool:
    """Whether there are chats and the model's tokenizer has no chat template; it is loaded only where there are."""
    if not any(record.get("messages") for record in records):
        return False
    return not chats.has_template(build_tokenizer(settings, _model_source(settings.model_name)))


def _needs_library_check(settings: TrainSettings) -> bool:
    """Whether a value was given that only the library can judge; asking it costs seconds of imports."""
    judged = ("training_arguments", "optim", "lr_scheduler_type", "eval_steps", "save_steps", "load_best_model_at_end")
    return any(settings.was_given(name) for name in judged)


def _bundle(plan: Plan) -> dict[str, float]:
    return {"CPU": plan.cpus_per_worker, **({"GPU": plan.gpus_per_worker} if plan.use_gpu else {})}
