"""Deduplication with its shards on Ray, or without Ray where one process is asked for."""

from __future__ import annotations

from pathlib import Path

from alpaca_ray.console import show_settings
from alpaca_ray.dedup.folder import OURS, check_folder
from alpaca_ray.dedup.inputs import Inputs
from alpaca_ray.dedup.run import run
from alpaca_ray.novelty.shards import ShardMaker
from alpaca_ray.settings.dedup import DedupSettings
from alpaca_ray.storage import resolve_output


def dedup(settings: DedupSettings) -> Path:
    """Deduplicate files and return the output folder.

    Raises:
        UserError: bad input; the results in the output folder are as they were.
        ClusterError: the cluster cannot be reached, or a shard died again and again.
    """
    inputs = Inputs(settings)
    folder = resolve_output(settings.output_dir)
    _check(settings, inputs, folder)
    show_settings("dedup", settings)
    make: ShardMaker | None = None
    if settings.num_shards > 1:
        from alpaca_ray import cluster
        from alpaca_ray.dedup.actors import shard_maker

        cluster.connect(show_workers=False)
        folder = resolve_output(settings.output_dir, several_nodes=cluster.node_count() > 1)
        _check(settings, inputs, folder)
        make = shard_maker(workers=settings.num_cpus or 1)
    run(settings, inputs, folder, make_shard=make)
    return folder


def _check(settings: DedupSettings, inputs: Inputs, folder: Path) -> None:
    inputs.check_apart(folder, OURS)
    check_folder(folder, inputs.identity, overwrite=settings.overwrite, resume=settings.resume)
