"""``export.py diff recover``: base plus difference is the tuned model again, checked tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpaca_ray.console import say, show_settings
from alpaca_ray.errors import ModelError
from alpaca_ray.export import bits, source, stanford_diff
from alpaca_ray.export.diff import DIFF_FILE, FORMAT, STEM, base_patterns
from alpaca_ray.export.output import check, staged
from alpaca_ray.export.record import record, say_done
from alpaca_ray.export.shards import write_shards
from alpaca_ray.export.weights import TYPES, Spec, Weights, open_weights
from alpaca_ray.manifest import file_digest, read_json_object
from alpaca_ray.settings.export import DiffRecoverSettings
from alpaca_ray.storage import resolve_output


def diff_recover(settings: DiffRecoverSettings) -> Path:
    """Write the tuned model that a difference was made of, and return its folder.

    Raises:
        ModelError, OutputError: as a line that names the tensor or the file that is not as it was; nothing is written
            then.
    """
    output = resolve_output(settings.output_dir)
    check(output, overwrite=settings.overwrite)
    folder = source.model_folder(settings.diff, flag="--diff")
    base_folder = source.model_folder(settings.base, flag="--base")
    source.check_apart(output, [folder, base_folder])
    base = open_weights(base_folder, flag="--base")
    content = read_json_object(folder / DIFF_FILE)
    if content is None:
        weights = open_weights(folder, flag="--diff")
        specs, make, finish = stanford_diff.recovery(settings, base, weights, source.config_of(folder))
    else:
        weights = open_weights(folder, flag="--diff", stem=STEM)
        if settings.integrity_sum is not None:
            raise ModelError(f"--integrity_sum: {folder / DIFF_FILE} carries its own: leave it out")
        specs, make, finish = _recovery(settings, folder, base, weights, content)
    show_settings("export diff recover", settings)
    size = sum(spec.nbytes for spec in specs.values())
    with staged(output, overwrite=settings.overwrite, size=size + (64 << 20)) as staging:
        names = write_shards(staging, specs, make, max_shard_size=settings.max_shard_size)
        say(finish())
        config = source.config_of(folder)
        names += [source.write_config(staging, config if content else {**config, "dtype": "float32"})]
        names += source.copy_companions(staging, folder)
        beside = [folder / DIFF_FILE] if content else []
        inputs = [
            *source.describe(settings.diff, folder, [*beside, *weights.files]),
            *source.describe(settings.base, base_folder, base.files),
        ]
        record(staging, settings, inputs=inputs, outputs=names, base_model=settings.base)
    say_done(output, model_bytes=size)
    return output


def _recovery(
    settings: DiffRecoverSettings, where: Path, base: Weights, diff: Weights, content: dict[str, Any]
) -> tuple[dict[str, Spec], Callable[[str], Any], Callable[[], str]]:
    """Return what is written, how each tensor is made, and the last check, which returns a line to print."""
    entries, total = content.get("tensors"), [0]
    if content.get("format") != FORMAT or not isinstance(entries, dict):
        raise ModelError(f"{where / DIFF_FILE}: is no description of a difference that this version can read")
    try:
        specs = {name: Spec(tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}
        kept = {name: Spec(spec.shape, bits.kept_dtype(TYPES[spec.dtype][1])) for name, spec in specs.items()}
        pairs = {name: str(entry["base"]) for name, entry in entries.items()}
        files = dict(content["files"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where / DIFF_FILE}: is damaged: {error} is missing or wrong") from error
    for name in kept.keys() | diff.keys():
        if name not in diff or diff[name] != kept.get(name):
            raise ModelError(f"--diff {where}: tensor {name} is not as {DIFF_FILE} describes it: a file is another's")
        if pairs[name] not in base:
            raise ModelError(f"--base {settings.base}: has no tensor {pairs[name]}: it is not the difference's base")
    for name, sha in files.items():
        if not (where / name).is_file() or file_digest(where / name) != sha:
            raise ModelError(f"--diff {where}: {name} is missing or corrupted (its digest is not the recorded one)")

    def make(name: str) -> Any:
        entry, spec = entries[name], specs[name]
        difference = bits.patterns(diff.read(name))
        if bits.pattern_sum(difference) != entry.get("diff_sum"):
            raise ModelError(f"--diff {diff.file(name)}: tensor {name} is corrupted: fetch the file again")
        if base[pairs[name]].shape[1:] != spec.shape[1:]:
            raise ModelError(
                f"--base {settings.base}: tensor {pairs[name]} has another shape than the difference's base"
            )
        theirs = base_patterns(base, pairs[name], spec)
        if bits.pattern_sum(theirs) != entry.get("base_sum"):
            raise ModelError(
                f"--base {settings.base}: tensor {pairs[name]} is not that of the base that the difference was made "
                f"from ({content.get('base_model')}), or its file is corrupted"
            )
        tuned = theirs + difference  # unsigned: numpy wraps around
        if hashlib.sha256(tuned).hexdigest() != entry.get("sha256"):
            raise ModelError(f"--diff {diff.file(name)}: tensor {name} is corrupted, here or in the base")
        total[0] = bits.add(total[0], bits.pattern_sum(tuned))
        return bits.as_numbers(tuned, TYPES[spec.dtype][0])

    def finish() -> str:
        if total[0] != content.get("integrity_sum"):
            raise ModelError(f"{where / DIFF_FILE}: its integrity sum is not that of its tensors: it is corrupted")
        return f"{len(entries)} tensors recovered, integrity sum {total[0]} as recorded"

    return specs, make, finish
