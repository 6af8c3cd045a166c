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
        DataError: it is not JSON, or not an object.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object")
    return content


def data_file_of(folder: Path) -> Path:
    """Return the file that holds the records of a stage's folder, named by its ``run.json`` or known by its name.

    Raises:
        DataError: the folder holds no such file.
    """
    manifest = read_manifest(folder)
    names = [manifest["data_file"]] if manifest and manifest.get("data_file") else list(_KNOWN_DATA_FILES)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: holds no records ({' or '.join(names)})")


def write_manifest(
    folder: Path,
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Iterable[str] = (),
    data_file: str | None = None,
    outputs: Iterable[str] = (),
    seed: int | None = None,
    prompt_template: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Write ``run.json`` into a stage's folder and return its content.

    Args:
        settings: the resolved settings, JSON-serialisable.
        inputs: what the stage read: files and folders (digest and run id are recorded), hub ids and URIs (by name).
        data_file: the file, relative to ``folder``, that a later stage's ``--data_path`` should read.
        outputs: files, relative to ``folder``, whose digests are recorded.
        extra: further JSON-serialisable entries.
    """
    content = {
        "stage": stage,
        "run_id": uuid.uuid4().hex,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data_file": data_file,
        "inputs": [_describe_input(source) for source in inputs],
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


def _describe_input(source: str) -> dict[str, Any]:
    path = Path(source)
    if is_uri(source) or not path.exists():
        return {"name": source}
    parent = read_manifest(path if path.is_dir() else path.parent)
    if path.is_dir():
        path = data_file_of(path)
    entry: dict[str, Any] = {"name": source, "file": str(path.resolve()), "sha256": file_digest(path)}
    if parent:
        entry["parent_run"] = parent.get("run_id")
    return entry
