"""The state of a model that FSDP shards: each worker writes its own part, and any number of workers reads it back.

Through torch's distributed checkpoint, whose reader takes the parts that the worker's own shards need. Imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from alpaca_ray.train.whole import SHARDED_FOLDER as FOLDER


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint holds sharded state of ours."""
    return (checkpoint / FOLDER).is_dir()


class ShardedState:
    """The sharded state of one worker's model and optimiser.

    Args:
        frozen_base: only the weights that are trained belong to the state.
    """

    def __init__(self, model: Any, optimizer: Any, *, frozen_base: bool) -> None:
        self._model, self._frozen_base = model, frozen_base
        self._optimizer = getattr(optimizer, "optimizer", optimizer)  # torch's own, inside accelerate's wrapper
        self._group: Any = None

    def begin(self, folder: Path) -> Any:
        """Copy this worker's shards to host memory and begin to write them; every worker must take part.

        Returns:
            what ``.result()`` waits for, in any thread; it raises where the parts could not be written.
        """
        if self._group is None:  # a group of its own: its exchanges must not mix with the training thread's
            self._group = dist.new_group(backend="gloo")
        writer = dcp.FileSystemWriter(folder / FOLDER, sync_files=True)
        state = {"model": self.weights(), "optimizer": self._optimizer_state()}
        return dcp.async_save(state, storage_writer=writer, process_group=self._group)

    def all_ok(self, ok: bool) -> bool:
        """Whether every worker says ``ok``; for the thread that writes."""
        flag = torch.tensor(int(ok))
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._group)
        return bool(flag.item())

    def weights(self) -> dict[str, torch.Tensor]:
        """Return this worker's shards of the weights that belong to the state, themselves and not copies."""
        named = dict(self._model.named_parameters())
        if self._frozen_base:
            named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        else:
            kept = self._model.state_dict().keys()  # leaves out what is computed anew, such as rotary frequencies
            named |= {name: buffer for name, buffer in self._model.named_buffers() if name in kept}
        return {name.replace("_orig_mod.", ""): tensor.detach() for name, tensor in named.items()}

    def local_weights(self) -> dict[str, torch.Tensor]:
        """Return the same as plain tensors."""
        return {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in self.weights().items()}

    def whole_weights(self, *, keep: bool) -> dict[str, torch.Tensor]:
        """Return the same gathered, in host memory, where ``keep`` is true; every worker must take part."""
        whole = {}
        for name, tensor in self.weights().items():
            gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if keep:
                whole[name] = gathered.cpu()
        return whole

    def load_weights(self, checkpoint: Path) -> None:
        """Read the weights back, into the model; every worker must take part."""
        dcp.load({"model": self.weights()}, checkpoint_id=checkpoint / FOLDER)

    def load_optimizer(self, checkpoint: Path) -> None:
        """Read the optimiser's state back; every worker must take part."""
        state = {"optimizer": self._optimizer_state()}
        dcp.load(state, checkpoint_id=checkpoint / FOLDER)
        set_optimizer_state_dict(self._model, self._optimizer, state["optimizer"], options=self._options)

    def _optimizer_state(self) -> dict[str, Any]:
        return get_optimizer_state_dict(self._model, self._optimizer, options=self._options)

    @property
    def _options(self) -> StateDictOptions:
        return StateDictOptions(ignore_frozen_params=self._frozen_base, strict=not self._frozen_base)
