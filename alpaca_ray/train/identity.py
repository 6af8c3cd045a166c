"""Which run a folder belongs to: what must be the same for ``--resume`` to go on with it. Pure.

The number of workers, logging, saving and the length of the run may change; what is learnt from what, in which order
and by which steps may not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.errors import OutputError
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record, digest
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.storage import write_atomic
from alpaca_ray.train.data import HELDOUT_FILE
from alpaca_ray.train.plan import Plan
from alpaca_ray.train.publish import newest_checkpoint

IDENTITY_FILE = "train_identity.json"

ORIGIN = "resume_from_checkpoint"

_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
# Settings that decide in which order samples are seen and how a step changes the weights.
_STEPS = ("group_by_length", "learning_rate", "lr_scheduler_type", "weight_decay", "optim")
# The same of what is passed on, with TrainingArguments' defaults: one that is given by name changes nothing.
_PASSED_ON: dict[str, Any] = {
    "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "lr_scheduler_kwargs": None,
    "optim_args": None,
    "optim_target_modules": None,
}
_NOT_ALWAYS_RECORDED = {
    *_STEPS, *_PASSED_ON, "data_seed", "warmup_steps", "warmup_ratio", "fsdp", "precision", ORIGIN
}  # fmt: skip
_NO_FLAGS = ("held-out records", "mode", "base_bits", "precision")


def identity(
    settings: TrainSettings,
    plan: Plan,
    template: PromptTemplate,
    records: tuple[Sequence[Record], Sequence[Record]],
    model_source: str,
    origin: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return what identifies a run, by the name of the flag that decides it; JSON-serialisable.

    Args:
        records: the records to learn, and those held out.
        model_source: the model's absolute path, or its hub id.
        origin: path and digest of the checkpoint from which the run begins (``restart.origin``).
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
        **_later(settings, plan),
        ORIGIN: origin,
    }


def _later(settings: TrainSettings, plan: Plan) -> dict[str, Any]:
    """Return what earlier versions did not record: a folder of theirs is not judged by it."""
    further = settings.training_arguments
    seed = further.get("data_seed")
    return {
        "data_seed": None if seed == settings.seed else seed,
        **{name: getattr(settings, name) for name in _STEPS},
        # Above 0 the steps win.
        "warmup_steps": settings.warmup_steps,
        "warmup_ratio": None if settings.warmup_steps else settings.warmup_ratio,
        **{name: further.get(name, default) for name, default in _PASSED_ON.items()},
        "fsdp": plan.fsdp,
        "precision": plan.precision,
    }


def check_same_run(
    folder: Path, now: Mapping[str, Any], heldout: Sequence[Record], *, unknown: Collection[str] = ()
) -> dict[str, str] | None:
    """Check that a folder's run is the one that the settings describe, and return the checkpoint that it began from.

    A folder that recorded no identity is judged by its held-out records alone.

    Args:
        unknown: names of ``now`` that are not known yet, and not compared.

    Raises:
        OutputError: it is another; every difference is named with both values. Or the run began from a checkpoint that
            is not given now, while it has none of its own.
    """
    recorded = _read(folder / IDENTITY_FILE)
    if isinstance(recorded, dict):
        before, given = recorded.get(ORIGIN), now.get(ORIGIN)
        if before and not given and newest_checkpoint(folder) is None:
            raise OutputError(
                f"--resume: {folder} holds a run that began from {before['path']} and has no checkpoint yet: give "
                f"--resume_from_checkpoint {before['path']} too"
            )
        same_origin = not given or (before and before["digest"] == given["digest"])  # wherever it lies now
        names = [*now, *(name for name in recorded if name not in now)]
        differing = [
            name
            for name in names
            if name not in unknown
            and recorded.get(name) != now.get(name)
            and not (name in _NOT_ALWAYS_RECORDED and name not in recorded)
            and not (name == ORIGIN and same_origin)
        ]
        text = "; ".join(
            f"{_flag(name)}: {_shown(recorded.get(name))} there, {_shown(now.get(name))} now" for name in differing
        )
    else:
        known, ids = _read(folder / HELDOUT_FILE), [record["id"] for record in heldout]
        text = f"{len(known)} other held-out records there, {len(ids)} now" if known not in (None, ids) else ""
    if text:
        raise OutputError(
            f"--resume: {folder} holds another run ({text}): give what it was started with, --overwrite to start anew, "
            "or another folder"
        )
    found = recorded.get(ORIGIN) if isinstance(recorded, dict) else None
    return found or now.get(ORIGIN)


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
    return name if name in _NO_FLAGS else f"--{name}"


def _shown(value: Any) -> str:
    return (
        f"{value['path']} (digest {value['digest']})" if isinstance(value, dict) and "digest" in value else str(value)
    )


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
