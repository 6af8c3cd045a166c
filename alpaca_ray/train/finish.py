"""What the driver makes of a finished run for people: the plot of lengths, the model card, the closing lines. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.console import as_bytes, say
from alpaca_ray.manifest import file_digest
from alpaca_ray.report.plots import save_length_histogram
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.storage import write_atomic
from alpaca_ray.train import progress, whole
from alpaca_ray.train.card import render_model_card
from alpaca_ray.train.data import HELDOUT_FILE


def with_lengths(result: Mapping[str, Any], output: Path, limit: int) -> dict[str, Any]:
    """Plot the samples' lengths, and return the result with what they come to in their place."""
    values = dict(result)
    counts = [(int(length), int(count)) for length, count in values.pop("lengths")]
    save_length_histogram(counts, limit, output / progress.LENGTHS_FILE)
    samples = sum(count for _, count in counts)
    values["lengths"] = {
        "samples": samples,
        "mean": round(sum(length * count for length, count in counts) / max(1, samples), 1),
        "longest": max((length for length, _ in counts), default=0),
        "share_at_limit": round(sum(count for length, count in counts if length >= limit) / max(1, samples), 4),
    }
    return values


def is_there(output: Path, content: Mapping[str, Any]) -> bool:
    """Whether what a finished run published, as its ``run.json`` says, still lies in its folder, unchanged."""
    outputs = content.get("outputs")
    named = outputs if isinstance(outputs, Mapping) else {}
    if not all((output / name).is_file() and file_digest(output / name) == digest for name, digest in named.items()):
        return False
    return whole.weights_fault(output) is None  # of a whole model, run.json names the configuration alone


def heldout_count(output: Path) -> int:
    """Return how many records a run held out."""
    return len(json.loads((output / HELDOUT_FILE).read_text(encoding="utf-8")))


def write_card(output: Path, content: Mapping[str, Any], settings: TrainSettings) -> None:
    """Write the model card of a finished run beside its weights; a README that is somebody's own stays."""
    path = output / progress.CARD_FILE
    if path.exists() and progress.CARD_MARK not in path.read_text(encoding="utf-8", errors="replace"):
        say(f"{progress.CARD_FILE} in {output} is no card of ours and stays")
        return
    write_atomic(path, render_model_card(content, settings))


def closing_lines(content: Mapping[str, Any]) -> list[str]:
    """Return what a run has to say of itself at its end."""
    proof, memory = content["proof"], content["memory"]
    seconds = proof.get("seconds_before", 0) + proof.get("seconds_after", 0)
    lines = [
        f"proven in {seconds:.1f} s: batches, trainable weights, saved files ({proof.get('tensors_read_back', 0)} "
        "tensors read back)"
    ]
    if proof.get("beside_text"):
        lines.append(f"no text goes through {', '.join(proof['beside_text'])}: not trained, and saved as before")
    peak, estimated = memory["peak_bytes"], memory.get("estimated_bytes")
    held = f"{as_bytes(estimated)} estimated" if estimated else "no estimate"
    return [*lines, f"memory: {as_bytes(peak)} a worker at the peak, {held} ({memory['measured']})"]
