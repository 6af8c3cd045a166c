"""One adapter's folder: what it says of itself, whether it can be served, and when it has changed. Loads no weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError, ModelError
from alpaca_ray.prompts import PromptTemplate, load_template

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TEMPLATE = "prompt_template.json"
CHAT_TEMPLATE = "chat_template.jinja"

# What rows of one batch cannot have each for themselves, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "bias": ("none",),
    "modules_to_save": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "kasa_config": (),
    "enable_lora": (),  # the first peft's adapters of fused projections
}


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter as it lies on disk.

    ``template`` is the instruction template that it was trained with, ``chat_template`` the Jinja text of one for chat;
    at most one of them matters, ``template`` first. ``identity`` is ``fingerprint`` of its folder.
    """

    name: str
    folder: Path
    base_model: str
    created: int
    template: PromptTemplate | None = None
    chat_template: str | None = None
    identity: str = ""

    @property
    def load_id(self) -> str:
        """What a replica keeps the loaded adapter under: other weights in the same folder are another adapter."""
        return f"{self.folder}@{self.identity}"


def folder_of(load_id: str) -> Path:
    """Return the folder that a ``load_id`` was made of."""
    return Path(load_id.rpartition("@")[0])


def fingerprint(folder: Path) -> str:
    """Return a short text that changes with any file that matters in serving: its time and its size, not its content.

    A file that is missing is part of it.
    """
    seen = hashlib.sha256()
    for name in (WEIGHTS, CONFIG, TEMPLATE, CHAT_TEMPLATE):
        try:
            state = (folder / name).stat()
        except OSError:
            seen.update(b"-;")
        else:
            seen.update(f"{state.st_mtime_ns},{state.st_size},{state.st_ino};".encode())
    return seen.hexdigest()[:16]


def read_adapter(folder: Path) -> AdapterInfo:
    """Return the description of the adapter in a folder.

    Raises:
        ModelError: it cannot be served: no safetensors weights, a broken config, or a kind of LoRA that rows of one
            batch cannot have each for themselves.
        DataError: its template cannot be read.
    """
    identity = fingerprint(folder)  # before anything is read: what changes meanwhile is then seen as a change
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).is_file():
            raise ModelError(
                f"adapter {folder}: its weights are a pickle ({PICKLE}), which may run code: name this folder alone as "
                f"--lora_weights of jobs/serve.py, which converts it to {WEIGHTS}"
            )
        raise ModelError(f"adapter {folder}: {WEIGHTS} is missing (a training run that has not finished?)")
    config = read_config(folder)
    template, chat = folder / TEMPLATE, folder / CHAT_TEMPLATE
    try:
        return AdapterInfo(
            name=folder.name,
            folder=folder,
            base_model=str(config.get("base_model_name_or_path") or ""),
            created=int((folder / WEIGHTS).stat().st_mtime),
            template=load_template(str(template)) if template.is_file() else None,
            chat_template=chat.read_text(encoding="utf-8") if chat.is_file() else None,
            identity=identity,
        )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"adapter {folder}: cannot be read: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration.

    Raises:
        ModelError: it cannot be read, or asks for what cannot be served.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"adapter {folder}: is of the kind {kind}, only LORA adapters are served")
    for name, harmless in _UNSUPPORTED.items():
        if config.get(name) is not None and config[name] not in harmless:
            raise ModelError(
                f"adapter {folder}: uses {name}, which cannot be served beside others: merge it into a model"
            )
    return dict(config)
