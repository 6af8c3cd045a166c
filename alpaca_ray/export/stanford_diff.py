"""Differences in Stanford Alpaca's own form: a model folder that holds ``tuned - base``, in floats.

Source: stanford_alpaca ``weight_diff.py``. Base and difference are added in float32; the rows of added tokens are held
against the mean of the base's, in the embedding and in the head; the sum of all recovered values is checked to 0.01.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alpaca_ray.errors import ModelError
from alpaca_ray.export.llama import rope
from alpaca_ray.export.pairs import counterpart
from alpaca_ray.export.weights import FLOATS, Spec, Weights
from alpaca_ray.settings.export import DiffRecoverSettings

TOLERANCE = 1e-2
_CONSTANTS = "rotary_emb.inv_freq"


def recovery(
    settings: DiffRecoverSettings, base: Weights, diff: Weights, config: Mapping[str, Any]
) -> tuple[dict[str, Spec], Callable[[str], Any], Callable[[], str]]:
    """Return what is written, how each tensor is made, and the last check, which returns a line to print.

    Rotary constants, which checkpoints of that time carry, count in the sum as they did there; none are written.

    Raises:
        ModelError: the base has no counterpart for a tensor.
    """
    odd = next((name for name, spec in diff.items() if spec.dtype not in FLOATS), None)
    if odd:
        raise ModelError(
            f"--diff {settings.diff}: tensor {odd} holds no floats: it is no difference of Stanford's form"
        )
    names = [name for name in diff if not name.endswith(_CONSTANTS)]
    pairs = {name: counterpart(name, diff[name], base, settings.base) for name in names}
    sums: dict[str, Any] = {}

    def make(name: str) -> Any:
        import torch

        old = base.read(pairs[name]).float()
        more = diff[name].shape[0] - old.shape[0] if diff[name].shape else 0
        if more > 0:
            old = torch.cat([old, old.mean(dim=0, keepdim=True).expand(more, *old.shape[1:])])
        made = (old if more >= 0 else old[:more]) + diff.read(name).float()
        sums[name] = made.sum()
        return made

    def finish() -> str:
        for name in diff:
            if name.endswith(_CONSTANTS):
                old = base.read(name).float() if name in base else _constants(config)
                sums[name] = (old + diff.read(name).float()).sum()
        # In float32 and in the order of the checkpoint, as the sum that was published was made.
        total = float(sum(sums[name] for name in diff))
        if settings.integrity_sum is None:
            return f"{len(names)} tensors recovered; no --integrity_sum to check them by: it is {total:.4f}"
        if not abs(total - settings.integrity_sum) <= TOLERANCE:  # also where it is not a number
            raise ModelError(
                f"--integrity_sum {settings.integrity_sum}: that of the recovered weights is {total:.4f}: base or "
                "difference is corrupted, or another"
            )
        return f"{len(names)} tensors recovered, integrity sum {total:.4f} as given"

    return {name: Spec(diff[name].shape, "F32") for name in names}, make, finish


def _constants(config: Mapping[str, Any]) -> Any:
    import torch

    size = config["hidden_size"] // config["num_attention_heads"]
    return 1.0 / (rope(config)["rope_theta"] ** (torch.arange(0, size, 2).float() / size))
