"""What a LoRA adapter adds to which tensor of its base. Checked against names and shapes before weights are read.

The change of a weight is ``scale * B @ A`` with ``scale = alpha / r`` (Hu et al., 2021), or ``alpha / sqrt(r)`` for
rank-stabilised LoRA (Kalajdzievski, 2023). DoRA (Liu et al., 2024) then scales each row of the sum to a learnt length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.export.skeleton import Skeleton
from alpaca_ray.export.weights import Weights, open_file
from alpaca_ray.manifest import read_json_object
from alpaca_ray.models import is_adapter
from alpaca_ray.serve.adapter_folder import CONFIG, WEIGHTS

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<part>A|B|magnitude_vector)(\.weight)?"
)
# Of an adapter's configuration, what says nothing about how the weights are used, and what is read here.
_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_dora", "use_rslora", "merge_weights",
}  # fmt: skip
# Ways to start that leave the base as it is; others (PiSSA, OLoRA, LoftQ, ...) change it when peft loads them.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Change:
    """What is added to one weight: names of A ``(rank, in)`` and B ``(out, rank)`` in the adapter, and the scale.

    ``transposed``: the weight lies as ``(in, out)``, as GPT-2's layers and every embedding do. ``lengths``: name of
    DoRA's lengths of the rows, ``(out,)``.
    """

    module: str
    a: str
    b: str
    scale: float
    transposed: bool
    lengths: str | None = None


class Adapter:
    """An adapter's folder: its configuration, and its weights by name."""

    def __init__(self, folder: Path) -> None:
        """Read the configuration and the header of the weights.

        Raises:
            ModelError: it is no LoRA adapter, or its weights are missing or damaged.
        """
        if not is_adapter(folder):
            raise ModelError(f"--adapter {folder}: holds no adapter, {CONFIG} is missing")
        self.folder = folder
        self.config = read_json_object(folder / CONFIG) or {}
        if self.config.get("peft_type") != "LORA":
            raise ModelError(
                f"--adapter {folder}: is of the kind {self.config.get('peft_type')}: only LORA adapters can be merged"
            )
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"--adapter {folder}: {WEIGHTS} is missing (a training run that has not finished?)")
        self.weights: Weights = open_file(folder / WEIGHTS)

    @property
    def base_model(self) -> str | None:
        """The base model's name as it was recorded."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def beyond_plain(self) -> str | None:
        """Return what makes the adapter more than ``B @ A`` beside frozen weights, or None."""
        for name, value in self.config.items():
            if name not in _UNDERSTOOD and value not in (None, False, {}, [], "none") and not name.endswith("_config"):
                return name
        for name in ("arrow_config", "kasa_config", "monteclora_config", "velora_config"):
            if self.config.get(name):
                return name
        start = self.config.get("init_lora_weights")
        if start not in _PLAIN_STARTS:
            return f"init_lora_weights={start}"
        return next((f"the tensor {name}" for name in self.weights if not _KEY.fullmatch(name)), None)

    def changes(self, skeleton: Skeleton, base: Weights) -> dict[str, Change]:
        """Return, for each adapted weight by its name in the base's files, what is added to it.

        A weight that shares its tensor with another (tied embeddings) has a name that the files may lack.

        Raises:
            ModelError: the adapter is of another model, or its configuration contradicts its weights.
        """
        parts: dict[str, dict[str, str]] = {}
        for key in self.weights:
            if match := _KEY.fullmatch(key):
                parts.setdefault(match["module"], {})[match["part"]] = key
                if match["kind"]:
                    parts[match["module"]]["embedding"] = key
        if not parts:
            raise ModelError(f"--adapter {self.folder}: {WEIGHTS} holds no LoRA weights")
        found = {}
        for module, names in sorted(parts.items()):
            if not {"A", "B"} <= names.keys():
                raise ModelError(f"--adapter {self.folder}: {module} has only one of lora_A and lora_B")
            if module not in skeleton.shapes:
                raise ModelError(f"--adapter {self.folder}: is of another model: the base has no {module}")
            transposed = "embedding" in names or module in skeleton.transposed
            scale, lengths = self._scale(module, names["A"]), names.get("magnitude_vector")
            change = Change(module, names["A"], names["B"], scale, transposed, lengths)
            self._check_shape(change, skeleton.shapes[module])
            found[skeleton.tensor(f"{module}.weight", base)] = change
        return found

    def _scale(self, module: str, a: str) -> float:
        rank = _of_module(self.config.get("rank_pattern"), module, self.config.get("r"))
        alpha = _of_module(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha"))
        if not isinstance(rank, int) or rank != self.weights[a].shape[0]:
            raise ModelError(
                f"--adapter {self.folder}: {CONFIG} gives {module} the rank {rank}, its weights have "
                f"{self.weights[a].shape[0]}"
            )
        if not isinstance(alpha, int | float):
            raise ModelError(f"--adapter {self.folder}: {CONFIG} gives {module} no lora_alpha")
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _check_shape(self, change: Change, there: tuple[int, ...]) -> None:
        here: tuple[int, ...] = (self.weights[change.b].shape[0], self.weights[change.a].shape[-1])
        if change.transposed:
            here = here[::-1]
        if change.lengths and self.weights[change.lengths].shape != (self.weights[change.b].shape[0],):
            raise ModelError(f"--adapter {self.folder}: {change.lengths} is not a length for each of its rows")
        if here != there or self.weights[change.b].shape[-1] != self.weights[change.a].shape[0]:
            raise ModelError(
                f"--adapter {self.folder}: is of another model: {change.module} changes a weight of {here}, the "
                f"base's has {there}"
            )


def _of_module(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of the first pattern that a module's path ends with, as peft's ``get_pattern_key`` matches."""
    if isinstance(patterns, Mapping):
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise ModelError(f"{CONFIG}: the pattern {pattern!r} is no regular expression: {error}") from error
    return default
