"""``--dry_run``: what a run would be and need, from its data, its model's configuration, and the cluster."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_ray import cluster
from alpaca_ray.console import as_bytes
from alpaca_ray.errors import EstimateError, ModelError
from alpaca_ray.machine import cores
from alpaca_ray.models import load_config
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.quiet import quiet_libraries
from alpaca_ray.records import Record
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import options, speed
from alpaca_ray.train.estimate import Estimate, estimate
from alpaca_ray.train.largest import largest_batch
from alpaca_ray.train.plan import Plan
from alpaca_ray.train.room import lacking

_SAMPLED = 4000  # records that are tokenised; lengths of more are drawn from these
# Resident memory of a worker with Ray, torch and transformers loaded, before a model is.
PROCESS_BYTES = 900 * 1024**2


def dry_run_lines(
    settings: TrainSettings,
    plan: Plan,
    template: PromptTemplate,
    training: Sequence[Record],
    source: str,
    bundle: dict[str, float],
    *,
    deepspeed: dict[str, Any] | None = None,
) -> list[str]:
    """Return what there is to say, as lines for the terminal. Loads a tokenizer, and no weights.

    Raises:
        DataError: no record has a token to learn.
        ModelError: there is no such model.
        SettingsError: a name or a rank that does not fit the model.
    """
    from alpaca_ray.train.architecture import check_names

    quiet_libraries(use_gpu=plan.use_gpu)
    check_names(settings, source)
    samples = _samples(settings, template, training, source)
    longest = max(len(sample["input_ids"]) for sample in samples)
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    cut = sum(len(sample["input_ids"]) >= settings.model_max_length for sample in samples)
    steps = total_steps(settings, plan, len(training))
    lines = [
        f"lengths: {tokens / len(samples):.0f} tokens a record on average, {longest} at most; {cut / len(samples):.1%} "
        f"reach --model_max_length {settings.model_max_length}",
        f"steps: {steps} ({steps / epoch_steps(plan, len(training)):.2f} epochs of {len(training)} records)",
    ]
    config = load_config(source, flag=settings.model_flag, cache_dir=settings.cache_dir)
    model_type = config.model_type
    lines += options.beyond_positions(settings, config)
    lines += speed.not_packed(settings, plan, model_type)
    packed = speed.attention_of(settings, plan, model_type)[1] != "none"
    batch = largest_batch(samples, plan, packed=packed, group_by_length=settings.group_by_length, seed=settings.seed)
    try:
        needs = estimate(settings, plan, source, batch, deepspeed=deepspeed)
    except EstimateError as error:
        return [*lines, f"memory: not estimated, this model cannot be run without values ({error})"]
    lines += _needs(needs, settings, plan)
    memory = needs.peak + (0 if plan.use_gpu else PROCESS_BYTES)
    nodes = cluster.node_kinds()
    missing = lacking(nodes, bundle, plan.least_workers, memory)
    lines += [f"the cluster lacks: {line}" for line in missing] or ["the cluster has room for it"]
    return lines + (logical_cpus(nodes, cores()) if missing else [])


def logical_cpus(nodes: Sequence[tuple[Mapping[str, float], int]], there: int) -> list[str]:
    """Return what to say where a cluster of this machine alone counts more CPUs than the machine has. Pure.

    Args:
        nodes: as ``room.lacking`` takes them.
        there: cores of this machine.
    """
    counted = nodes[0][0].get("CPU", 0) if len(nodes) == 1 and nodes[0][1] == 1 else 0
    if counted <= there:
        return []
    return [
        f"  (this machine has {there} CPU cores; the cluster started on it for this run counts them as {counted:g})"
    ]


def total_steps(settings: TrainSettings, plan: Plan, samples: int) -> int:
    """Return the optimiser steps of a run."""
    if settings.max_steps > 0:
        return settings.max_steps
    return math.ceil(settings.num_train_epochs * epoch_steps(plan, samples))


def epoch_steps(plan: Plan, samples: int) -> int:
    """Return the optimiser steps of an epoch, the last of which may have fewer samples."""
    return math.ceil(samples / plan.step_samples)


def _needs(needs: Estimate, settings: TrainSettings, plan: Plan) -> list[str]:
    batch = needs.batch
    share = needs.trainable / max(1, needs.parameters)
    parts = {
        "weights": needs.weights,
        "gradients": needs.gradients,
        f"{settings.optim} state": needs.optimiser,
        f"activations of {batch.rows} x {batch.tokens} tokens": needs.passes,
    }
    of = "its GPU's memory" if plan.use_gpu else f"memory beside about {as_bytes(PROCESS_BYTES)} for the process"
    kept = "all" if settings.save_total_limit is None else f"at most {settings.save_total_limit}"
    return [
        f"parameters: {needs.parameters:,}, of which {needs.trainable:,} are trained ({share:.2%})",
        f"estimated peak: {as_bytes(needs.peak)} of {of}, a worker",
        "  " + ", ".join(f"{name} {as_bytes(size)}" for name, size in parts.items()),
        f"checkpoint: {as_bytes(needs.checkpoint)} each, {kept} kept",
    ]


def _samples(settings: TrainSettings, template: PromptTemplate, training: Sequence[Record], source: str) -> list[Any]:
    from alpaca_ray.train.encode import encode
    from alpaca_ray.train.tokenizer import build_tokenizer

    chooser = random.Random(settings.seed)
    records = list(training) if len(training) <= _SAMPLED else chooser.sample(list(training), _SAMPLED)
    try:
        tokenizer = build_tokenizer(settings, source)
    except OSError as error:
        raise ModelError(f"{settings.model_flag} {settings.model_name}: {error}") from error
    samples = encode(
        records,
        tokenizer,
        template,
        max_length=settings.model_max_length,
        train_on_inputs=settings.train_on_inputs,
        add_eos=settings.ends_samples,
    )
    return samples + chooser.choices(samples, k=max(0, len(training) - len(samples)))
