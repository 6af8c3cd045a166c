"""Writes safetensors files tensor by tensor: the library's own writer wants a whole shard in memory.

Format: https://huggingface.co/docs/safetensors (eight bytes of header length, the header as JSON, the values).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.errors import ModelError
from alpaca_ray.export.weights import TYPES, Spec

Make = Callable[[str], Any]


def write_shards(
    folder: Path, specs: Mapping[str, Spec], make: Make, *, max_shard_size: str, stem: str = "model"
) -> list[str]:
    """Write tensors into ``stem.safetensors``, or into shards and their index, and return the files' names.

    Args:
        specs: every tensor's name, shape and type; decides what goes into which shard before anything is made.
        make: returns the tensor of a name; called once for each, in the order of the file; at most one is alive.
        max_shard_size: as ``5GB`` (a billion bytes each); a larger tensor has a shard of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        dict(specs),
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for name, tensors in plan.filename_to_tensors.items():
        write_file(folder / name, {tensor: specs[tensor] for tensor in tensors}, make)
        say(f"wrote {name} ({(folder / name).stat().st_size / 1e9:.2f} GB)")
    names = list(plan.filename_to_tensors)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        names.append(f"{stem}.safetensors.index.json")
        (folder / names[-1]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def write_file(path: Path, specs: Mapping[str, Spec], make: Make) -> None:
    """Write one safetensors file.

    Raises:
        ModelError: a tensor does not fit the place that its spec gave it.
    """
    # Wide types first, as the library orders them: every tensor is then aligned to its type.
    order = sorted(specs, key=lambda name: (-TYPES[specs[name].dtype][1], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + specs[name].nbytes
        header[name] = {
            "dtype": specs[name].dtype,
            "shape": list(specs[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in _bytes(name, make(name), specs[name]):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _bytes(name: str, tensor: Any, spec: Spec) -> Iterator[memoryview]:
    import torch

    if tuple(tensor.shape) != spec.shape or tensor.dtype != getattr(torch, TYPES[spec.dtype][0]):
        raise ModelError(f"tensor {name}: is {tensor.dtype} {tuple(tensor.shape)}, expected {spec.dtype} {spec.shape}")
    if tensor.numel():
        yield memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
