"""Adapters that an operator names one by one: on the hub, or with the pickled weights of peft's first versions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.manifest import file_digest
from alpaca_ray.models import cache_folder, is_adapter
from alpaca_ray.serve.adapter_folder import CHAT_TEMPLATE, CONFIG, PICKLE, TEMPLATE, WEIGHTS, read_config
from alpaca_ray.storage import publish_folder


def resolve_adapters(name: str) -> str:
    """Return the folder of an adapter, or of adapters, that was named by path or hub id; one from the hub is fetched.

    A single adapter whose weights are a pickle is converted, once, into the cache folder; of a folder of adapters,
    which others may write to, no pickle is read.

    Raises:
        ModelError: there is no such folder, and none on the hub that can be reached, its pickle holds more than
            weights, or its configuration cannot be served.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            raise ModelError(f"adapters {name}: no such folder")
        path = _download(name)
    if is_adapter(path) and not (path / WEIGHTS).is_file() and (path / PICKLE).is_file():
        return str(_converted(path.resolve()))
    return str(path)


def _download(name: str) -> Path:
    import huggingface_hub

    target = cache_folder() / "adapters" / name
    wanted = [CONFIG, WEIGHTS, PICKLE, TEMPLATE, CHAT_TEMPLATE]
    try:
        huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_dir=target)
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ModelError(f"adapters {name}: no such folder, and not on the hub that can be reached: {error}") from error
    return target


def _converted(folder: Path) -> Path:
    """Return a copy of an adapter with its pickle as safetensors; one for each content of the pickle and the config."""
    from filelock import FileLock

    # Of the first peft's settings, these two are gone; without a value they mean nothing, but peft warns of them.
    config = read_config(folder)
    config = {name: value for name, value in config.items() if name not in ("enable_lora", "merge_weights")}
    version = f"{file_digest(folder / PICKLE)[:16]}-{file_digest(folder / CONFIG)[:8]}"
    target = cache_folder() / "converted" / version / folder.name  # its last part is the name that it is served under
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not (target / WEIGHTS).is_file():
            from safetensors.torch import save_file

            weights = _read_pickle(folder / PICKLE)
            with publish_folder(target) as new:
                (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
                save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
        for name in (TEMPLATE, CHAT_TEMPLATE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
            else:
                (target / name).unlink(missing_ok=True)
    return target


def _read_pickle(path: Path) -> dict[str, Any]:
    """Return the tensors of a pickle, read without running any code that it may hold."""
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"adapter {path}: is no file of weights alone, and is not read: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"adapter {path}: holds something else than weights by name, and is not read")
    if not content:
        raise ModelError(f"adapter {path}: holds no weights: the run that wrote it saved an empty adapter")
    # Copied: safetensors takes no tensors that share memory, pickles may hold such.
    return {str(name): value.detach().clone().contiguous() for name, value in content.items()}
