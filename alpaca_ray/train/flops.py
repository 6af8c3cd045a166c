"""Model FLOPs utilisation: the share of a device's peak that went into the model's own arithmetic. Pure.

A token costs 2 FLOPs a parameter forward, and twice that backward: once for the gradients of activations, once for
those of weights (J. Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1). LoRA leaves the last
third out: its base is frozen. Attention's own products and what is computed twice are not counted, so the figure is a
lower bound of what the device did. Only real tokens count, padding does not.
"""

from __future__ import annotations

from typing import Literal

FLOPS_PER_PARAMETER = {"lora": 4, "full": 6}

# Dense bf16 TFLOP/s, without sparsity, from the makers' data sheets; the first name found in a device's own wins.
_PEAKS = (
    ("B200", 2250.0),
    ("H200", 989.5),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.5),
    ("H800", 989.5),
    ("GH200", 989.5),
    ("L40S", 362.05),
    ("L40", 181.05),
    ("L4", 121.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 6000 Ada", 364.25),
    ("RTX A6000", 154.85),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI300X", 1307.4),
    ("MI250X", 383.0),
)


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 FLOP/s of a device by the name that its driver gives it, or None where it is not known."""
    words = device_name.replace("-", " ").split()
    for name, tera in _PEAKS:
        wanted = name.split()
        if any(words[start : start + len(wanted)] == wanted for start in range(len(words))):
            return tera * 1e12
    return None


def utilisation(
    tokens_per_second: float, parameters: int, mode: Literal["lora", "full"], device_name: str, workers: int
) -> float | None:
    """Return the model FLOPs utilisation of a run, between 0 and 1; None on a device whose peak is not known.

    Args:
        tokens_per_second: real tokens of all workers together.
        parameters: all parameters of the model.
        workers: GPUs that share the work, of all workers together.
    """
    peak = peak_flops(device_name)
    if peak is None:
        return None
    return tokens_per_second * FLOPS_PER_PARAMETER[mode] * parameters / (peak * workers)
