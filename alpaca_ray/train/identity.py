"""Which run a folder belongs to: what must be the same for ``--resume`` to go on with it. Pure.

The number of workers, logging, saving and the length of the run may change; what is learnt from what may not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.errors import OutputError
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record, digest
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.storage import write_atomic
from alpaca_ray.train.data import HELDOUT_FILE
from alpaca_ray.train.plan import Plan

IDENTITY_FILE = "train_identity.json"

_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")


def identity(
    settings: TrainSettings,
    plan: Plan,
    template: PromptTemplate,
    records: tuple[Sequence[Record], Sequence[Record]],
    model_source: str,
) -> dict[str, Any]:
    """Return what identifies a run, by the name of the flag that decides it; JSON-serialisable.

    Args:
        records: the records to learn, and those held out.
        model_source: the model's absolute path, or its hub id.
    """
    training, heldout = records
    return {
        "model": model_source,
        "mode": plan.mode,
        "base_bits": 8 if settings.load_8bit else 4 if settings.load_4bit else None,
        **({name: getattr(settings, name) for name in _LORA} if plan.mode == "lora" else {}),
        **{name: True for name in ("use_rslora", "use_dora") if plan.mode == "lora" and getattr(settings, name)},
        "seed": settings.seed,
        "val_set_size": settings.val_set_size,
        "data_path": f"{len(training)} records to learn, digest {_digest(training)}",
        "held-out records": f"{len(heldout)} records, digest {_digest(heldout)}",
        "batch_size": plan.step_samples,
        "model_max_length": settings.model_max_length,
        "prompt_template": f"digest {hashlib.sha256(template.to_json().encode()).hexdigest()[:12]}",
        "train_on_inputs": settings.train_on_inputs,
        "add_eos_token": settings.ends_samples,
    }


def check_same_run(folder: Path, now: Mapping[str, Any], heldout: Sequence[Record]) -> None:
    """Check that a folder's run is the one that the settings describe.

    A folder that recorded no identity is judged by its held-out records alone.

    Raises:
        OutputError: it is another; every difference is named with both values.
    """
    recorded = _read(folder / IDENTITY_FILE)
    if isinstance(recorded, dict):
        names = [*now, *(name for name in recorded if name not in now)]
        differing = [name for name in names if recorded.get(name) != now.get(name)]
        text = "; ".join(f"{_flag(name)}: {recorded.get(name)} there, {now.get(name)} now" for name in differing)
    else:
        before = _read(folder / HELDOUT_FILE)
        ids = [record["id"] for record in heldout]
        text = f"{len(before)} other held-out records there, {len(ids)} now" if before not in (None, ids) else ""
    if text:
        raise OutputError(
            f"--resume: {folder} holds another run ({text}): give what it was started with, --overwrite to start anew, "
            "or another folder"
        )


def step_samples(folder: Path) -> int | None:
    """Return the samples of a step of the run that a folder holds, None where it recorded none.

    Raises:
        OutputError: its record cannot be read.
    """
    recorded = _read(folder / IDENTITY_FILE)
    found = recorded.get("batch_size") if isinstance(recorded, dict) else None
    return found if isinstance(found, int) and found > 0 else None


def write(folder: Path, now: Mapping[str, Any]) -> None:
    """Record the identity of a run in its folder."""
    write_atomic(folder / IDENTITY_FILE, json.dumps(now, ensure_ascii=False, indent=2) + "\n")


def _flag(name: str) -> str:
    return name if name in ("held-out records", "mode", "base_bits") else f"--{name}"


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read: {error}: give --overwrite, or another folder") from error


def _digest(records: Sequence[Record]) -> str:
    whole = hashlib.sha256()
    for record in records:
        whole.update(f"{record['id']} {digest(record)}\n".encode("utf-8", "surrogatepass"))
    return whole.hexdigest()[:12]
