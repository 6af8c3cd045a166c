"""LoRA adapters on a base model, a different one for each row of a batch (peft's ``adapter_names``)."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.errors import ModelError

logger = logging.getLogger(__name__)

_BASE = "__base__"  # peft's name for a row without an adapter


class AdapterBank:
    """The adapters that are in memory.

    ``load``, ``forward`` and ``collect`` change or run the model and belong to the engine's thread; ``acquire``,
    ``release`` and ``retire`` only count and may be called from anywhere. Whoever has acquired an adapter may use it
    until the release, whatever is retired meanwhile.
    """

    def __init__(self, model: Any) -> None:
        self._base = model
        self._peft: Any = None
        self._numbers = itertools.count()
        self._loaded: set[str] = set()
        self._retired: set[str] = set()
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, folder: Path) -> str:
        """Load the adapter in ``folder`` and return its key.

        Raises:
            ModelError: a weight of the file finds no place in the base model, or one is missing or not finite.
        """
        from peft import PeftConfig, PeftModel

        key = f"adapter{next(self._numbers)}"
        try:
            if self._peft is None:  # in two steps: where the weights do not fit, what was put around the base is known
                config = PeftConfig.from_pretrained(str(folder))
                config.inference_mode = True
                self._peft = PeftModel(self._base, config, adapter_name=key)
            self._peft.load_adapter(str(folder), adapter_name=key, torch_device=str(self._base.device))
            problems = self._check_complete(folder, key)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            self._forget(key)
            raise ModelError(f"adapter {folder.name}: does not fit the base model: {_first_line(error)}") from error
        if problems:
            self._forget(key)
            raise ModelError(f"adapter {folder.name}: does not fit the base model: {problems[0]}")
        self._peft.eval()
        with self._lock:
            self._loaded.add(key)
        return key

    def acquire(self, key: str) -> bool:
        """Count one more request that uses an adapter; False where it is no longer in memory."""
        with self._lock:
            if key not in self._loaded:
                return False
            self._users[key] += 1
            return True

    def release(self, key: str) -> None:
        """Count one request less."""
        with self._lock:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]

    def retire(self, key: str) -> None:
        """Mark an adapter to be freed as soon as no request uses it."""
        with self._lock:
            self._retired.add(key)

    def collect(self) -> None:
        """Free the retired adapters that no request uses any more."""
        with self._lock:
            free = {key for key in self._retired if not self._users[key]}
            self._retired -= free
            free &= self._loaded
            self._loaded -= free  # under the lock: from here on nobody can acquire them
        for key in free:
            self._forget(key)

    def forward(self, keys: Sequence[str | None], **inputs: Any) -> Any:
        """Run the model, row i with the adapter ``keys[i]`` or none."""
        if self._peft is None or not any(keys):
            return self._base_forward(**inputs)
        return self._peft(adapter_names=[key or _BASE for key in keys], **inputs)

    def _base_forward(self, **inputs: Any) -> Any:
        if self._peft is None:
            return self._base(**inputs)
        rows = inputs["input_ids"].shape[0]
        return self._peft(adapter_names=[_BASE] * rows, **inputs)

    def _forget(self, key: str) -> None:
        """Remove an adapter's weights. The last one takes peft's layers with it: the base model is plain again."""
        if self._peft is None or key not in self._peft.peft_config:
            return
        if len(self._peft.peft_config) > 1:
            self._peft.delete_adapter(key)
            return
        self._base = self._peft.unload()
        self._peft = None

    def _check_complete(self, folder: Path, key: str) -> list[str]:
        """Return what is wrong with the weights that were loaded, as texts; peft itself lets unknown ones pass."""
        import torch
        from peft import get_peft_model_state_dict
        from safetensors import safe_open

        loaded = get_peft_model_state_dict(self._peft, adapter_name=key, save_embedding_layers=False)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            names = set(file.keys())
        problems = [f"it has no place for {name}" for name in sorted(names - loaded.keys())]
        problems += [f"{name} is missing" for name in sorted(loaded.keys() - names)]
        problems += [f"{name} holds NaN or infinity" for name, w in loaded.items() if not torch.isfinite(w).all()]
        return problems


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
