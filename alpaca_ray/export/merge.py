"""``export.py merge``: an adapter merged into its base, as a checkpoint that needs no peft."""

from __future__ import annotations

from pathlib import Path

from alpaca_ray.console import say, show_settings
from alpaca_ray.export.model import find_origin, write_model
from alpaca_ray.export.output import check, staged
from alpaca_ray.export.record import record, say_done
from alpaca_ray.report import hub
from alpaca_ray.settings.export import MergeSettings
from alpaca_ray.storage import resolve_output


def merge(settings: MergeSettings) -> Path:
    """Write base plus adapter into the output folder and return it; upload it where that is asked for.

    Raises:
        ModelError, OutputError, SettingsError: as a line that says what to do; nothing is written then, except that an
            upload which fails leaves the finished folder.
    """
    output = resolve_output(settings.output_dir)
    check(output, overwrite=settings.overwrite)
    public = not settings.private
    repo = None
    if settings.push_to_hub:
        repo = hub.check_push(settings.push_to_hub, public=public, repo_type="model", flag="--private false")
    origin = find_origin(adapter=settings.adapter, base_model=settings.base_model, output=output)
    show_settings("export merge", settings)
    say(f"base model {origin.name} ({origin.weights.nbytes / 1e9:.2f} GB)")
    with staged(output, overwrite=settings.overwrite, size=origin.size(settings.dtype)) as staging:
        names = write_model(staging, origin, dtype=settings.dtype, max_shard_size=settings.max_shard_size)
        record(staging, settings, inputs=origin.described(), outputs=names, base_model=origin.name)
    if repo:
        address = hub.push(
            output, repo, {name: name for name in names}, public=public, repo_type="model", message="Upload the model"
        )
        say(f"uploaded: {address}")
    say_done(output, model_bytes=origin.weights.nbytes)
    return output
