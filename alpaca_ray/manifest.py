"""``run.json``: what a stage made, from what, and how. Written last, so its presence marks a folder as complete."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from alpaca_ray import __version__
from alpaca_ray.errors import DataError
from alpaca_ray.storage import is_uri, write_atomic

FILE_NAME = "run.json"
_PACKAGES = ("ray", "torch", "transformers", "peft", "datasets", "openai", "rouge-score", "numba", "bitsandbytes")
# What a folder without run.json (made by the originals, or by hand) may call its records, in order of preference.
_KNOWN_DATA_FILES = ("regen.json", "kept.jsonl", "alpaca_data.json")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of a folder's ``run.json``, or None where it has none.

    Raises:
        DataError: the file is there and is not JSON.
    """
    return read_json_object(folder / FILE_NAME)


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file of a stage's folder holds, or None where there is no such file.

    Raises:
        DataError: it is not JSON, not an object, or cannot be read.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, and numbers of thousands of digits
        raise DataError(f"{path}: not valid JSON: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object")
    return content


def is_unfinished(folder: Path) -> bool:
    """Whether a stage is at work in a folder, or was stopped there: it has results, but no ``run.json``."""
    return (folder / "metrics.json").is_file() and not (folder / FILE_NAME).exists()


def data_file_of(folder: Path) -> Path:
    """Return the file that holds the records of a stage's folder, named by its ``run.json`` or known by its name.

    Raises:
        DataError: the folder holds no such file, or its ``run.json`` names it by something that is no text.
    """
    named = (read_manifest(folder) or {}).get("data_file")
    if not isinstance(named, str | None):
        raise DataError(f"{folder / FILE_NAME}: 'data_file' must be a text, not {type(named).__name__}")
    names = [named] if named else list(_KNOWN_DATA_FILES)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: holds no records ({' or '.join(names)})")


def describe_inputs(sources: Iterable[str]) -> list[dict[str, Any]]:
    """Return what ``run.json`` records of what a stage reads, to be given to ``write_manifest`` as ``inputs``.

    A stage that calls it before it publishes results records the files that it read, and meets no error afterwards.

    Args:
        sources: files and folders (digest, and id of the run that wrote them, are recorded), hub ids and URIs (by
            name).

    Raises:
        DataError: a folder holds no records, or a file cannot be read.
    """
    return [_describe_input(source) for source in sources]


def write_manifest(
    folder: Path,
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Iterable[str | Mapping[str, Any]] = (),
    data_file: str | None = None,
    outputs: Iterable[str] = (),
    seed: int | None = None,
    prompt_template: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Write ``run.json`` into a stage's folder and return its content.

    Args:
        settings: the resolved settings, JSON-serialisable.
        inputs: what the stage read: names as ``describe_inputs`` takes them, or what it made of them. A name that
            cannot be described any more is recorded with the reason: the results are there, and complete.
        data_file: the file, relative to ``folder``, that a later stage's ``--data_path`` should read.
        outputs: files, relative to ``folder``, whose digests are recorded.
        extra: further JSON-serialisable entries.
    """
    content = {
        "stage": stage,
        "run_id": uuid.uuid4().hex,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data_file": data_file,
        "inputs": [_described(source) if isinstance(source, str) else dict(source) for source in inputs],
        "outputs": {name: file_digest(folder / name) for name in outputs},
        "seed": seed,
        "prompt_template": prompt_template,
        "settings": dict(settings),
        "revision": source_revision(),
        "versions": versions(),
        **extra,
    }
    write_atomic(folder / FILE_NAME, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    return content


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that shape a result."""
    found = {"alpaca_ray": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # an extra that is not installed has no version to record
    return found


def source_revision() -> str | None:
    """Return the git revision of the source tree this package was imported from, or None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git on this machine: the revision is unknown, which is what None says
    return done.stdout.strip()


def _described(source: str) -> dict[str, Any]:
    try:
        return _describe_input(source)
    except DataError as error:
        return {"name": source, "not_described": str(error)}


def _describe_input(source: str) -> dict[str, Any]:
    path = Path(source).expanduser()
    if is_uri(source) or not path.exists():
        return {"name": source}
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = data_file_of(path)
    try:
        entry: dict[str, Any] = {"name": source, "file": str(path.resolve()), "sha256": file_digest(path)}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    parent = _run_that_wrote(path, folder)
    if parent is not None:
        entry["parent_run"] = parent
    return entry


def _run_that_wrote(path: Path, folder: Path) -> str | None:
    """Return the id of the run whose ``run.json`` names a file of its folder; None where there is no such run."""
    try:
        manifest = read_manifest(folder) or {}
    except DataError:
        return None  # what lies beside a file of the user's need not be ours
    outputs = manifest.get("outputs")
    names = [manifest.get("data_file"), *(outputs if isinstance(outputs, Mapping) else ())]
    run = manifest.get("run_id")
    written = path.resolve() in [(folder / name).resolve() for name in names if isinstance(name, str)]
    return run if written and isinstance(run, str) else None
