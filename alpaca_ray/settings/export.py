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


def _check_size(text: str) -> None:
    if not _SIZE.fullmatch(text) or float(text[:-2]) == 0:
        raise ValueError(f"--max_shard_size {text!r}: must be a size such as 500MB or 5GB")
