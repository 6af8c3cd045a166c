"""``export.py diff make``: a fine-tuned model as its difference from its base, to be released where the base may not.

The scheme is that of Stanford Alpaca's ``weight_diff.py``: one difference a tensor, the tuned model's tokenizer beside
it, and a sum over all weights that recovery is checked by. It differs in three things: differences are of bit patterns
(``bits``), so that recovery is exact in any type; the rows of added tokens are held against rows of the base rather
than against their mean; and beside the sum (exact, of all patterns), each tensor has a digest, so that what is
corrupted is named. The files are called ``diff*``, so that nothing takes them for a model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from alpaca_ray.console import say, show_settings
from alpaca_ray.errors import ModelError
from alpaca_ray.export import bits, source
from alpaca_ray.export.output import check, staged
from alpaca_ray.export.pairs import counterpart
from alpaca_ray.export.record import record, say_done
from alpaca_ray.export.shards import write_shards
from alpaca_ray.export.weights import TYPES, Spec, Weights, open_weights
from alpaca_ray.manifest import file_digest
from alpaca_ray.settings.export import DiffMakeSettings
from alpaca_ray.storage import resolve_output

DIFF_FILE = source.DIFF_FILE
STEM = "diff"
FORMAT = "bit patterns, modulo 2 ** width"


def diff_make(settings: DiffMakeSettings) -> Path:
    """Write the difference between a tuned model and its base, and return the folder.

    Raises:
        ModelError, OutputError: as a line that says what to do; nothing is written then.
    """
    output = resolve_output(settings.output_dir)
    check(output, overwrite=settings.overwrite)
    folders = {flag: source.model_folder(getattr(settings, flag), flag=f"--{flag}") for flag in ("base", "tuned")}
    source.check_apart(output, folders.values())
    kinds = {flag: source.config_of(folder).get("model_type") for flag, folder in folders.items()}
    if kinds["base"] != kinds["tuned"]:
        raise ModelError(f"--tuned {settings.tuned}: is of the architecture {kinds['tuned']}, the base {kinds['base']}")
    base = open_weights(folders["base"], flag="--base")
    tuned = open_weights(folders["tuned"], flag="--tuned")
    pairs = {name: counterpart(name, spec, base, settings.base) for name, spec in tuned.items()}
    show_settings("export diff make", settings)
    specs = {name: Spec(spec.shape, bits.kept_dtype(TYPES[spec.dtype][1])) for name, spec in tuned.items()}
    entries: dict[str, dict[str, Any]] = {}

    def make(name: str) -> Any:
        spec = tuned[name]
        ours, theirs = bits.patterns(tuned.read(name)), base_patterns(base, pairs[name], spec)
        difference = ours - theirs  # unsigned: numpy wraps around
        entries[name] = {
            "base": pairs[name],
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "base_sum": bits.pattern_sum(theirs),
            "diff_sum": bits.pattern_sum(difference),
            "tuned_sum": bits.pattern_sum(ours),
            "sha256": hashlib.sha256(ours).hexdigest(),
        }
        return bits.to_tensor(difference)

    with staged(output, overwrite=settings.overwrite, size=tuned.nbytes + (64 << 20)) as staging:
        names = write_shards(staging, specs, make, max_shard_size=settings.max_shard_size, stem=STEM)
        beside = [source.write_config(staging, source.config_of(folders["tuned"]))]
        beside += source.copy_companions(staging, folders["tuned"])
        total = 0
        for entry in entries.values():
            total = bits.add(total, entry["tuned_sum"])
        content = {
            "format": FORMAT,
            "base_model": settings.base,
            "integrity_sum": total,
            "files": {name: file_digest(staging / name) for name in beside},
            "tensors": dict(sorted(entries.items())),
        }
        (staging / DIFF_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        inputs = [
            entry
            for flag, folder, weights in (("base", folders["base"], base), ("tuned", folders["tuned"], tuned))
            for entry in source.describe(getattr(settings, flag), folder, weights.files)
        ]
        record(staging, settings, inputs=inputs, outputs=[*names, *beside, DIFF_FILE], base_model=settings.base)
    say(f"{len(entries)} tensors, integrity sum {total}")
    say_done(output, model_bytes=tuned.nbytes)
    return output


def base_patterns(base: Weights, name: str, spec: Spec) -> Any:
    """Return the base's side of a tensor: its bit patterns in the tuned tensor's type, with as many rows."""
    import torch

    tensor = base.read(name).to(getattr(torch, TYPES[spec.dtype][0]))
    array = bits.patterns(tensor)
    return bits.rows_like(array, spec.shape[0]) if tuple(array.shape) != spec.shape else array
