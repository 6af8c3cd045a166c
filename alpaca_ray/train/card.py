"""The model card: README.md with the front matter that a hub reads, from a finished run's ``run.json``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alpaca_ray.models import EMBEDDED
from alpaca_ray.report.card import facts_table, inline, table
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.progress import CARD_MARK

_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_RECIPE = (
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "optim",
    "model_max_length",
    "train_on_inputs",
    "gradient_checkpointing",
    "seed",
)
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora")
_PACKED = {"none": "padded batches", "mask": "packed, with a mask of blocks"}


def render_model_card(content: Mapping[str, Any], settings: TrainSettings) -> str:
    """Return the card's text.

    Args:
        content: of ``run.json``.
        settings: of the run; ``license`` is the user's word, ``other`` where nothing is said.
    """
    title = f"{_name_of(settings.output_dir)}: {_short(content['base_model'])}, tuned on instructions"
    kind = "A LoRA adapter for" if content["mode"] == "lora" else "All weights of"
    learnt = f"{content['lengths']['samples']:,} records"
    summary = f"{kind} {_short(content['base_model'])}, trained on {learnt} with alpaca_ray."
    matter = yaml.safe_dump(_front_matter(content, settings), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{matter}---", CARD_MARK, f"# {inline(title)}", inline(summary)]
    parts += ["## Result", table(("what", "value"), facts_table(_result(content)))]
    parts += ["![Training and validation loss](loss.png)", "![Lengths of the samples](lengths.png)"]
    parts += ["## Data", table(("source", "SHA-256", "from run"), _sources(content))]
    parts += [_data_note(content)]
    parts += ["## Settings", table(("setting", "value"), facts_table(_recipe(content, settings)))]
    parts += ["## How to use it", _usage(content)]
    parts += ["## Licence", _licence(settings.license)]
    versions = content.get("versions", {})
    parts += ["## Made with", table(("package", "version"), facts_table(versions))]
    return "\n\n".join(parts) + "\n"


def _front_matter(content: Mapping[str, Any], settings: TrainSettings) -> dict[str, Any]:
    lora = content["mode"] == "lora"
    base = content["base_model"]
    matter: dict[str, Any] = {
        "license": settings.license,
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["instruction-tuning", *(["lora"] if lora else []), "alpaca-ray"],
    }
    hub_id = _EMBEDDED_HUB_ID if base == EMBEDDED else base
    if hub_id.count("/") == 1 and not Path(hub_id).expanduser().is_dir():  # a hub refuses what is no id of it
        matter |= {"base_model": hub_id, "base_model_relation": "adapter" if lora else "finetune"}
    data = [source["name"] for source in content["inputs"] if _is_hub_id(source)]
    return {**matter, "datasets": data} if data else matter


def _is_hub_id(source: Mapping[str, Any]) -> bool:
    name = str(source["name"])
    return "file" not in source and name.count("/") == 1 and "://" not in name and not name.startswith((".", "/", "~"))


def _result(content: Mapping[str, Any]) -> dict[str, Any]:
    before, after = content.get("validation_loss_before"), content.get("validation_loss_after")
    share = content["trainable_parameters"] / max(1, content["parameters"])
    rate = content.get("tokens_per_second")
    return {
        "validation loss before": None if before is None else f"{before:.4f}",
        "validation loss after": None if after is None else f"{after:.4f}",
        "optimiser steps": f"{content['steps']:,}",
        "trained parameters": f"{content['trainable_parameters']:,} of {content['parameters']:,} ({share:.2%})",
        "real tokens a second": None if rate is None else f"{rate:,.0f}",
        "seconds, start to end": content.get("seconds"),
        "hardware": content.get("hardware"),
        "run": content.get("run_id"),
        "finished": content.get("finished_at"),
    }


def _sources(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (_short(source["name"]), str(source.get("sha256", "")), str(source.get("parent_run", "")))
        for source in content["inputs"]
    ]


def _data_note(content: Mapping[str, Any]) -> str:
    lengths = content["lengths"]
    held = content.get("heldout_records")
    text = (
        f"Learnt: {lengths['samples']:,} records, {lengths['mean']:,} tokens on average, {lengths['longest']:,} at most"
    )
    text += f"; {lengths['share_at_limit']:.1%} reach the limit and may be cut."
    if held is not None:
        text += f" Held out, and never trained on: {held:,} (their ids are in `heldout_ids.json`)."
    template = content.get("prompt_template")
    kind = (
        f"the template `{_short(template)}` (`prompt_template.json`)" if template else "the tokenizer's chat template"
    )
    return f"{text} Records were put into {kind}."


def _recipe(content: Mapping[str, Any], settings: TrainSettings) -> dict[str, Any]:
    packing = content["packing"]
    values: dict[str, Any] = {
        "mode": "LoRA" if content["mode"] == "lora" else "full fine-tuning",
        "base weights": "8-bit" if settings.load_8bit else "4-bit NF4" if settings.load_4bit else None,
        "precision": content["precision"],
        "workers": content["workers"],
        "wrapper": content.get("wrapper"),
        "samples a step": content.get("step_samples"),
        "batches": _PACKED.get(packing, "packed without padding"),
    }
    unused = "num_train_epochs" if settings.max_steps > 0 else "max_steps"
    names = [name for name in (*_RECIPE, *(_LORA if content["mode"] == "lora" else ())) if name != unused]
    return values | {name: getattr(settings, name, None) for name in names}


def _usage(content: Mapping[str, Any]) -> str:
    if content["mode"] == "lora":
        return (
            "It is in PEFT's layout: `peft.AutoPeftModelForCausalLM.from_pretrained` reads it where the base model's "
            "name means something, and `python jobs/serve.py --base_model BASE --lora_weights FOLDER` serves it beside "
            "its base."
        )
    return "It is a Hugging Face checkpoint: `transformers.AutoModelForCausalLM.from_pretrained` reads it."


def _licence(name: str) -> str:
    if name == "other":
        return (
            "Not stated. What may be done with these weights follows from the licence of the base model and from the "
            "terms of the data that they were trained on: read both before you pass them on."
        )
    return f"`{name}`, as stated by whoever trained it. The base model's own licence holds beside it."


def _name_of(folder: str) -> str:
    return Path(folder).name or "model"


def _short(name: str) -> str:
    """Return a path's last part: where it lay on somebody's machine is nobody else's business. Hub ids stay whole."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or name.startswith((".", "~")) or path.exists() else name
