"""What an export reads: a model by hub id, path or ``embedded`` as a local folder, and the files beside weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError, OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST_FILE
from alpaca_ray.manifest import file_digest, read_json_object
from alpaca_ray.models import is_adapter, resolve_model
from alpaca_ray.serve.adapter_folder import CHAT_TEMPLATE
from alpaca_ray.serve.adapter_folder import TEMPLATE as PROMPT_TEMPLATE

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
DIFF_FILE = "diff.json"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    CHAT_TEMPLATE,
)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model*.bin.index.json")


def model_folder(name: str, *, flag: str, revision: str | None = None) -> Path:
    """Return the local folder of a model, fetched from the hub where it is named by its id.

    Raises:
        ModelError: there is no such model, it is an adapter, or its weights are quantised.
    """
    path = Path(name).expanduser()
    if path.is_dir() and is_adapter(path) and not (path / CONFIG).is_file():
        raise ModelError(f"{flag} {name}: holds a LoRA adapter: merge it into a model first (`jobs/export.py merge`)")
    source = resolve_model(name, flag=flag)
    folder = Path(source) if Path(source).is_dir() else _download(name, flag, revision)
    if config_of(folder).get("quantization_config"):
        raise ModelError(f"{flag} {name}: its weights are quantised: name the model that they were made from")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """Return a model's ``config.json``.

    Raises:
        ModelError: there is none.
    """
    config = read_json_object(folder / CONFIG)
    if config is None:
        raise ModelError(f"{folder}: holds no model, {CONFIG} is missing")
    return config


def _download(name: str, flag: str, revision: str | None) -> Path:
    import huggingface_hub

    wanted = [CONFIG, GENERATION_CONFIG, DIFF_FILE, PROMPT_TEMPLATE, *_TOKENIZER]
    try:
        there = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
        kind = _WEIGHTS if any(file.endswith(".safetensors") for file in there) else _PICKLES
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*wanted, *kind])
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        try:  # fetched earlier, and no way to the hub now
            folder = huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        except (OSError, ValueError):
            reason = " ".join(str(error).split())
            raise ModelError(f"{flag} {name}: no model there, and none on the hub that can be reached: {reason}") from (
                error
            )
    return Path(folder)


def check_apart(output: Path, inputs: Iterable[Path], flag: str = "--output_dir") -> None:
    """Check that an export does not write where it reads.

    Raises:
        OutputError: it would.
    """
    for folder in inputs:
        if output.resolve() == folder.resolve():
            raise OutputError(f"{flag} {output}: is what is read: give another folder")


def copy_companions(target: Path, model: Path, adapter: Path | None = None) -> list[str]:
    """Copy generation config, tokenizer and templates, and return the files' names.

    The tokenizer is the adapter's where it brings one, as a whole; templates are the adapter's own, else the model's.
    """
    own = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    tokenizer = adapter if adapter and own else model
    sources = {GENERATION_CONFIG: model, **dict.fromkeys(_TOKENIZER, tokenizer), PROMPT_TEMPLATE: adapter or model}
    if adapter:
        sources[CHAT_TEMPLATE] = adapter if (adapter / CHAT_TEMPLATE).is_file() else tokenizer
    copied = [name for name, folder in sources.items() if (folder / name).is_file()]
    for name in copied:
        shutil.copyfile(sources[name] / name, target / name)
    return copied


def write_config(target: Path, config: dict[str, Any]) -> str:
    """Write ``config.json`` and return its name."""
    (target / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return CONFIG


def describe(name: str, folder: Path, files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return what ``run.json`` records of the files of a folder that was read: digests, and the run that wrote it."""
    run = (read_json_object(folder / MANIFEST_FILE) or {}).get("run_id")
    parent = {"parent_run": run} if isinstance(run, str) else {}
    return [{"name": name, "file": str(file.resolve()), "sha256": file_digest(file), **parent} for file in files]
