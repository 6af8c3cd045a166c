"""A model, with or without an adapter merged into it, written tensor by tensor as a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.console import say
from alpaca_ray.errors import ModelError
from alpaca_ray.export import source
from alpaca_ray.export.adapter import Adapter, Change
from alpaca_ray.export.shards import write_shards
from alpaca_ray.export.skeleton import Skeleton, skeleton_of
from alpaca_ray.export.weights import TYPES, Spec, Weights, open_weights
from alpaca_ray.export.whole import merge_whole
from alpaca_ray.serve.adapter_folder import CONFIG as ADAPTER_CONFIG
from alpaca_ray.serve.adapter_source import resolve_adapters

# The configuration and the tokenizer, and what shards and file systems add.
_BESIDE_WEIGHTS = 64 << 20


@dataclass(frozen=True)
class Origin:
    """What a model is made of: its base by name and folder, the base's weights, and the adapter."""

    name: str
    folder: Path
    weights: Weights
    adapter: Adapter | None

    def described(self) -> list[dict[str, Any]]:
        """Return the entries of ``run.json`` for what was read."""
        entries = source.describe(self.name, self.folder, [self.folder / source.CONFIG, *self.weights.files])
        if self.adapter:
            folder = self.adapter.folder
            files = [folder / ADAPTER_CONFIG, *self.adapter.weights.files]
            entries = [*source.describe(str(folder), folder, files), *entries]
        return entries

    def size(self, dtype: str | None) -> int:
        """Return about how many bytes the result takes on disk."""
        return sum(spec.cast(dtype).nbytes for spec in self.weights.values()) + _BESIDE_WEIGHTS


def find_origin(
    *, adapter: str | None, base_model: str | None = None, model: str | None = None, output: Path
) -> Origin:
    """Find and open what is to be written; nothing but headers is read.

    Raises:
        ModelError: something is missing, damaged, or of the wrong kind.
        OutputError: it is what ``output`` names.
    """
    opened = Adapter(_adapter_folder(adapter)) if adapter else None
    revision = None
    name, flag = model or "", "--model"
    if opened:
        source.check_apart(output, [opened.folder])
        name, flag = base_model or "", "--base_model"
        if not base_model:
            name, flag = opened.base_model or "", f"{opened.folder / ADAPTER_CONFIG}: base_model_name_or_path"
            revision = opened.config.get("revision")
            if not name:
                raise ModelError(f"--adapter {opened.folder}: names no base model: give --base_model")
    try:
        folder = source.model_folder(name, flag=flag, revision=revision)
    except ModelError as error:
        if opened and not base_model:
            raise ModelError(f"{error}: give --base_model") from error
        raise
    source.check_apart(output, [folder])
    return Origin(name, folder, open_weights(folder, flag=flag), opened)


def _adapter_folder(name: str) -> Path:
    try:
        return Path(resolve_adapters(name)).expanduser()
    except ModelError as error:
        raise ModelError(str(error).replace(f"adapters {name}", f"--adapter {name}", 1)) from error


def write_model(staging: Path, origin: Origin, *, dtype: str | None, max_shard_size: str) -> list[str]:
    """Write the checkpoint of an origin into an empty folder and return the files' names.

    Args:
        dtype: torch's name of the type of every floating-point tensor; None keeps each as it is in the base. Sums are
            made in float32 and rounded once.

    Raises:
        ModelError: the adapter does not fit or makes values that are no numbers, or one is too large for the type.
    """
    config = dict(source.config_of(origin.folder))
    names = []
    plan = _plan(origin)
    if isinstance(plan, str):
        assert origin.adapter is not None
        say(f"merging through peft, with the whole model in memory: the adapter has {plan}")
        names = merge_whole(staging, origin, dtype=dtype, max_shard_size=max_shard_size)
    else:
        changes, copies = plan
        specs = {name: spec.cast(dtype) for name, spec in origin.weights.items()}
        specs |= {name: specs[of] for name, of in copies.items()}
        if copies:
            config["tie_word_embeddings"] = False
        if dtype:
            config.pop("torch_dtype", None)
            config["dtype"] = dtype

        def make(name: str) -> Any:
            tensor = origin.weights.read(copies.get(name, name))
            return _made(name, tensor, changes.get(name), origin.adapter, specs[name])

        names = [
            *write_shards(staging, specs, make, max_shard_size=max_shard_size),
            source.write_config(staging, config),
        ]
    companions = source.copy_companions(staging, origin.folder, origin.adapter.folder if origin.adapter else None)
    return sorted({*names, *companions})


def _plan(origin: Origin) -> tuple[dict[str, Change], dict[str, str]] | str:
    """Return the changes by tensor, and tensors to be added as copies of others; or why only peft can merge."""
    adapter, weights = origin.adapter, origin.weights
    if adapter is None:
        return {}, {}
    reason = adapter.beyond_plain()
    if reason:
        return reason
    skeleton = skeleton_of(origin.folder, flag="--base_model")
    changes = adapter.changes(skeleton, weights)
    dora = bool(adapter.config.get("use_dora"))
    if any(dora != bool(change.lengths) or (dora and change.transposed) for change in changes.values()):
        return "use_dora, on other layers than linear ones"
    copies = _untied(skeleton, weights, changes)
    missing = next((name for name in changes if name not in weights and name not in copies), None)
    return f"the tensor {missing}, under another name in the base's files" if missing else (changes, copies)


def _untied(skeleton: Skeleton, weights: Weights, changes: Mapping[str, Change]) -> dict[str, str]:
    """Return the tensor that has to be written twice, because only one of its two uses is changed by the adapter."""
    ends = [skeleton.tensor(f"{module}.weight", weights) for module in (skeleton.embedding, skeleton.head)]
    if not skeleton.tied or not set(ends) & set(changes):
        return {}
    there = next((name for name in ends if name in weights), None)
    return {name: there for name in ends if name not in weights and there}


def _made(name: str, tensor: Any, change: Change | None, adapter: Adapter | None, spec: Spec) -> Any:
    import torch

    kind = getattr(torch, TYPES[spec.dtype][0])
    if change and adapter:
        a, b = (adapter.weights.read(part).float() for part in (change.a, change.b))
        left, right = (a.T, b.T) if change.transposed else (b, a)
        base = tensor
        tensor = torch.addmm(base.float(), left, right, alpha=change.scale)
        if change.lengths:
            lengths = adapter.weights.read(change.lengths).float()
            tensor = tensor * (lengths / torch.linalg.vector_norm(tensor, dim=1))[:, None]
        if torch.isfinite(base).all() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"--adapter {adapter.folder}: merged, {name} holds values that are no numbers or too large: did its "
                "training diverge? Give an earlier checkpoint"
            )
    if tensor.dtype == kind:
        return tensor
    made = tensor.to(kind)
    if torch.isfinite(made).all() or not torch.isfinite(tensor).all():
        return made
    raise ModelError(f"--dtype {TYPES[spec.dtype][0]}: {name} holds values too large for it: give bfloat16 or float32")
