"""Settings of ``jobs/export.py``, a class for each of its commands."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting

DType = Literal["float32", "bfloat16", "float16"]

_HUB_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]B", re.IGNORECASE)

_DTYPE = "Type of the floating-point tensors that are written. By default each keeps the one that it has."
_SHARD = "Largest file of weights; a billion bytes are 1GB."


class ExportSettings(Settings):
    """What every export takes."""

    command: ClassVar[str] = ""

    output_dir: str = setting(..., "Folder to write into; the result appears in it when it is complete.")
    overwrite: bool = setting(False, "Replace the files of an earlier export in output_dir; no others are touched.")


class MergeSettings(ExportSettings):
    """What ``export.py merge`` reads and writes."""

    command: ClassVar[str] = "merge"

    adapter: str = setting(..., "LoRA adapter in PEFT's layout: a folder, or a hub id.", group="model")
    base_model: str | None = setting(
        None,
        "Model that the adapter was trained on: hub id, folder or 'embedded'. By default the one that it records.",
        group="model",
    )
    dtype: DType | None = setting(None, _DTYPE, group="files")
    max_shard_size: str = setting("5GB", _SHARD, group="files")
    push_to_hub: str | None = setting(None, "Upload the result to this model repository (OWNER/NAME).", group="hub")
    private: bool = setting(True, "Make a repository that push_to_hub creates private.", group="hub")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_size(self.max_shard_size)
        if self.push_to_hub and not _HUB_REPO.fullmatch(self.push_to_hub):
            raise ValueError(f"--push_to_hub {self.push_to_hub!r}: must be NAME or OWNER/NAME")
        if not self.private and not self.push_to_hub:
            raise ValueError("--private false does nothing without --push_to_hub NAME: give both, or neither")
        return self


class StateDictSettings(ExportSettings):
    """What ``export.py state-dict`` reads and writes."""

    command: ClassVar[str] = "state-dict"

    model: str = setting(..., "Model of the Llama architecture: a folder, a hub id or 'embedded'.", group="model")
    dtype: DType | None = setting(None, _DTYPE, group="files")


class DiffMakeSettings(ExportSettings):
    """What ``export.py diff make`` reads and writes."""

    command: ClassVar[str] = "diff make"

    base: str = setting(..., "Model that was fine-tuned: a folder, a hub id or 'embedded'.", group="models")
    tuned: str = setting(..., "What fine-tuning made of it: a folder or a hub id.", group="models")
    max_shard_size: str = setting("5GB", _SHARD, group="files")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_size(self.max_shard_size)
        return self


class DiffRecoverSettings(ExportSettings):
    """What ``export.py diff recover`` reads and writes."""

    command: ClassVar[str] = "diff recover"

    base: str = setting(..., "Model that the difference was made from: folder, hub id or 'embedded'.", group="models")
    diff: str = setting(..., "Folder that `diff make` wrote, or a difference in Stanford's own form.", group="models")
    integrity_sum: float | None = setting(
        None,
        "Sum of all recovered weights in float32, for Stanford's own form, which does not carry it; checked to 0.01 as "
        "there. What `diff make` wrote carries its own, exact one.",
        group="models",
    )
    max_shard_size: str = setting("5GB", _SHARD, group="files")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_size(self.max_shard_size)
        return self


class OllamaSettings(ExportSettings):
    """What ``export.py ollama`` reads and writes."""

    command: ClassVar[str] = "ollama"

    model: str | None = setting(None, "Model: a folder, a hub id or 'embedded'. Or give adapter.", group="model")
    adapter: str | None = setting(None, "LoRA adapter to merge first: a folder, or a hub id.", group="model")
    base_model: str | None = setting(
        None, "Model that the adapter was trained on. By default the one that it records.", group="model"
    )
    prompt_template: str | None = setting(
        None,
        "Prompt template of the Modelfile: stanford, alpaca, alpaca_short, or a JSON file. By default what lies with "
        "the adapter or the model: its prompt_template.json, else its chat template.",
        group="prompt",
    )
    dtype: DType | None = setting(None, _DTYPE, group="files")
    max_shard_size: str = setting("5GB", _SHARD, group="files")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_size(self.max_shard_size)
        if bool(self.model) == bool(self.adapter):
            raise ValueError("give --model or --adapter, one of them")
        if self.base_model and not self.adapter:
            raise ValueError("--base_model belongs to --adapter: give --model alone, or both of them")
        return self


def _check_size(text: str) -> None:
    if not _SIZE.fullmatch(text) or float(text[:-2]) == 0:
        raise ValueError(f"--max_shard_size {text!r}: must be a size such as 500MB or 5GB")
