"""Whether a checkpoint has everything that a resume needs, seen without loading it. Pure.

A checkpoint of ours ends with a list of its files and their sizes. One without a list, which transformers or an earlier
version wrote, is judged by the files that it must have, and by whether each of those is as long as it says itself.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from alpaca_ray.errors import SettingsError

LIST_FILE = "checkpoint.json"
STATE_FILE = "trainer_state.json"
SHARDED_FOLDER = "sharded"
# Written by DeepSpeed beside the states of a checkpoint; names the folder that holds them.
DEEPSPEED_MARK = "latest"

_FSDP_WEIGHTS = "pytorch_model_fsdp"  # what transformers calls them: a folder of parts, or one .bin
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NONE = "it holds no weights"
_OPTIMISERS = ("optimizer.pt", "optimizer.bin")


def write_list(folder: Path) -> None:
    """Write the list of a checkpoint's files and sizes, in bytes; the last file that it gets."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    sizes.pop(LIST_FILE, None)
    (folder / LIST_FILE).write_text(json.dumps({"files": sizes}, indent=2) + "\n", encoding="utf-8")


def fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, in words; None where a resume finds what it needs."""
    try:
        if not (checkpoint / STATE_FILE).is_file():
            return _missing(STATE_FILE)
        return _listed(checkpoint) if (checkpoint / LIST_FILE).is_file() else _unlisted(checkpoint)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def by_fsdp(checkpoint: Path) -> bool:
    """Whether FSDP wrote a checkpoint's state in parts: ours, or transformers' own."""
    return (checkpoint / SHARDED_FOLDER).is_dir() or any(checkpoint.glob(f"{_FSDP_WEIGHTS}*"))


def check_fsdp(checkpoint: Path, *, fsdp: bool, flag: str = "--resume") -> None:
    """Check that a full checkpoint can be resumed by a run that shards its model with FSDP, or does not.

    Raises:
        SettingsError: it cannot.
    """
    if by_fsdp(checkpoint) != fsdp:
        how = "without FSDP: leave --fsdp out" if fsdp else "under FSDP: give --fsdp, as the run was started"
        raise SettingsError(
            f"{flag}: {checkpoint} was written {how}, or start anew with --overwrite or another --output_dir"
        )


def _listed(checkpoint: Path) -> str | None:
    content = _json(checkpoint / LIST_FILE)
    sizes = content.get("files") if isinstance(content, dict) else None
    if not isinstance(sizes, dict):
        return f"{LIST_FILE} cannot be read"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return _missing(name)
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def _unlisted(checkpoint: Path) -> str | None:
    state = _json(checkpoint / STATE_FILE)
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        return f"{STATE_FILE} cannot be read"
    if (checkpoint / DEEPSPEED_MARK).is_file():
        named = (checkpoint / DEEPSPEED_MARK).read_text(encoding="utf-8", errors="replace").strip()
        states = sorted((checkpoint / named).glob("*_states.pt")) if named else []
        if not any(path.name.endswith("_optim_states.pt") for path in states):
            return f"{named or 'the folder that ' + DEEPSPEED_MARK + ' names'} holds no state of the optimiser"
        return _first_fault(checkpoint, [f"{named}/{path.name}" for path in states])
    if by_fsdp(checkpoint):
        return _parts(checkpoint)
    optimiser = next((name for name in _OPTIMISERS if (checkpoint / name).is_file()), _OPTIMISERS[0])
    return weights_fault(checkpoint) or _first_fault(checkpoint, [optimiser, "scheduler.pt"])


def weights_fault(folder: Path) -> str | None:
    """Return what is wrong with the weights, of an adapter or a whole model, in a folder; None where nothing is."""
    named = [name for name in _WEIGHTS if (folder / name).is_file()]
    if not named:  # several adapters, each in a folder; a run's own folder has its checkpoints there
        below = (path for name in _WEIGHTS[:2] for path in folder.glob(f"*/{name}"))
        named = [f"{path.parent.name}/{path.name}" for path in below if not path.with_name(STATE_FILE).exists()]
    index = next((name for name in _INDEXES if (folder / name).is_file()), None)
    if not named and index:
        content = _json(folder / index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            return f"{index} cannot be read"
        named = sorted({str(name) for name in shards.values()})
    if not named:
        expected = {"adapter_config.json": _WEIGHTS[0], "config.json": _WEIGHTS[2]}
        return next((_missing(name) for mark, name in expected.items() if (folder / mark).is_file()), _NONE)
    return _first_fault(folder, named)


def _parts(checkpoint: Path) -> str | None:
    """Look at the parts that FSDP wrote."""
    ours = (checkpoint / SHARDED_FOLDER).is_dir()
    for name in (SHARDED_FOLDER,) if ours else (f"{_FSDP_WEIGHTS}_0", "optimizer_0"):
        single = checkpoint / {f"{_FSDP_WEIGHTS}_0": f"{_FSDP_WEIGHTS}.bin"}.get(name, _OPTIMISERS[1])
        if not ours and single.is_file():
            continue
        folder = checkpoint / name
        if not (folder / ".metadata").is_file() or not any(folder.glob("*.distcp")):
            return _missing(f"a part of {name}")
    return None if (checkpoint / "scheduler.pt").is_file() else _missing("scheduler.pt")


def _first_fault(folder: Path, names: list[str]) -> str | None:
    for name in names:
        if not (folder / name).is_file():
            return _missing(name)
        if _is_cut(folder / name):
            return f"{name} was cut off, or is empty"
    return None


def _is_cut(path: Path) -> bool:
    """Whether a file of weights or of torch's is shorter than its own table of contents says."""
    if path.suffix == ".safetensors":
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                return True
            try:
                header = json.loads(file.read(length))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                return True
        return size != 8 + length + max(ends, default=0)
    with path.open("rb") as file:
        head = file.read(2)
    # torch writes archives, whose table of contents lies at the end; what it wrote long ago cannot be judged.
    return not head or (head == b"PK" and not zipfile.is_zipfile(path))


def _missing(name: str) -> str:
    return f"{name} is missing"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # also of bytes that are no text
        return None
