"""The tensors of a model folder, one at a time: nothing but the tensor that is asked for takes memory.

Reads safetensors (one file, or shards with an index), and the pickles of older checkpoints through torch's memory map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.manifest import read_json_object

# What older checkpoints have in place of safetensors: one file, or the index of several.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# safetensors' names of the types, torch's names, and bytes per element.
TYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
FLOATS = ("F64", "F32", "F16", "BF16")
BY_TORCH_NAME = {name: code for code, (name, _) in TYPES.items()}


@dataclass(frozen=True)
class Spec:
    """Shape and type (safetensors' name, such as ``BF16``) of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size of the values, in bytes."""
        return math.prod(self.shape) * TYPES[self.dtype][1]

    def cast(self, dtype: str | None) -> Spec:
        """Return the same with another type, given as torch names it; integers and None leave it as it is."""
        return replace(self, dtype=BY_TORCH_NAME[dtype]) if dtype and self.dtype in FLOATS else self


class Weights(Mapping[str, Spec]):
    """Tensor names of a folder mapped to their specs; ``read`` returns values."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Read the headers of ``files`` (tensor name to file).

        Raises:
            ModelError: a file is missing, damaged, or of a type that is not known here.
        """
        self._files = dict(files)
        self._specs: dict[str, Spec] = {}
        self._pickles: dict[Path, Mapping[str, Any]] = {}
        for file in sorted(set(self._files.values())):
            self._specs |= {name: spec for name, spec in self._header(file) if self._files.get(name) == file}
        for name, file in self._files.items():
            if name not in self._specs:
                raise ModelError(f"{file}: the index says that it holds {name}, and it does not")

    def __getitem__(self, name: str) -> Spec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._files.values()))

    @property
    def nbytes(self) -> int:
        """Size of all values, in bytes."""
        return sum(spec.nbytes for spec in self._specs.values())

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._files[name]

    def read(self, name: str) -> Any:
        """Return a tensor, not to be changed: it may be a view of the file."""
        file = self._files[name]
        if file in self._pickles:
            return self._pickles[file][name]
        from safetensors import SafetensorError, safe_open

        try:
            # Opened for each tensor: a file that stays open keeps every page that was read in the process's memory.
            with safe_open(file, "pt") as handle:
                return handle.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: tensor {name} cannot be read: {error}") from error

    def _header(self, file: Path) -> Iterator[tuple[str, Spec]]:
        for name, shape, dtype in _pickle(file, self._pickles) if file.suffix == ".bin" else _safetensors(file):
            if dtype not in TYPES:
                raise ModelError(f"{file}: tensor {name} is of the type {dtype}, which cannot be exported")
            yield name, Spec(shape, dtype)


def open_weights(folder: Path, *, flag: str, stem: str = "model") -> Weights:
    """Open the weights of a model folder, or others in the same form: ``stem.safetensors`` and its shards.

    Raises:
        ModelError: it holds none, or a file is missing or damaged.
    """
    names = [f"{stem}.safetensors", f"{stem}.safetensors.index.json", *(_PICKLES if stem == "model" else ())]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"{flag} {folder}: holds no weights ({' or '.join(names)})")
    if found.suffix != ".json":
        return open_file(found)
    index = (read_json_object(found) or {}).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ModelError(f"{found}: holds no weight_map of tensor names to files")
    missing = next((name for name in index.values() if not (folder / name).is_file()), None)
    if missing:
        raise ModelError(f"{folder}: {missing} is missing, which {found.name} names")
    return Weights({tensor: folder / name for tensor, name in index.items()})


def open_file(file: Path) -> Weights:
    """Open one file of weights.

    Raises:
        ModelError: it cannot be read.
    """
    entries = _pickle(file, {}) if file.suffix == ".bin" else _safetensors(file)
    return Weights({name: file for name, _, _ in entries})


def _safetensors(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as handle:
            slices = [(name, handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118 (not a mapping)
            yield from [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]
    except (OSError, SafetensorError) as error:
        cut = _cut_off(file)
        raise ModelError(
            f"{file}: " + (f"is cut off within tensor {cut}" if cut else f"is damaged: {error}")
        ) from error


def _cut_off(file: Path) -> str | None:
    """Return the first tensor that a file is too short for, or None where that is not what is wrong with it."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            header = json.loads(handle.read(length)) if length < size else {}
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None  # the header itself is damaged: the library's own words say so
    return min((name for name in ends if ends[name] > size), key=ends.__getitem__, default=None)


def _pickle(file: Path, opened: dict[Path, Mapping[str, Any]]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    import pickle

    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as weights: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{file}: holds something else than weights by name")
    opened[file] = content
    for name, value in content.items():
        dtype = str(value.dtype).removeprefix("torch.")
        yield name, tuple(value.shape), BY_TORCH_NAME.get(dtype, dtype)
