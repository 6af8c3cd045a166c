"""What a checkpoint holds, copied in the training thread, and the work that writes it from there. Imports torch.

Each function here copies what must not change any more and returns the work, which runs in another thread while the
training goes on. The layout is the one that Trainer reads: weights, ``optimizer.pt``, ``scheduler.pt``, a random state
for each worker, and ``trainer_state.json``; where FSDP shards the model, ``sharded/`` holds weights and optimiser.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers.training_args import ParallelMode

from alpaca_ray.errors import OutputError, TrainingError
from alpaca_ray.train import background, snapshot
from alpaca_ray.train.sharded import ShardedState

Work = Callable[[], None]


def whole_work(trainer: Any, target: Path) -> Work:
    """The checkpoint of a model that every worker has whole: the first worker writes it."""
    states = _random_states(trainer)
    if states is None:
        return lambda: None
    weights, write_weights = _weights(trainer)
    writers = [write_weights, *_other_writers(trainer, states)]
    if not trainer.args.save_only_model:
        writers.append(snapshot.torch_writer("optimizer.pt", snapshot.to_host(trainer.optimizer.state_dict())))
    place = _placing(trainer, target, writers)
    step = trainer.state.global_step

    def work() -> None:
        snapshot.check_finite(weights, step, target.parent)
        place(None)

    return work


def sharded_work(trainer: Any, sharded: ShardedState, target: Path) -> Work:
    """The checkpoint of a model that FSDP shards: every worker writes its part, the first one all else."""
    states = _random_states(trainer)
    step = trainer.state.global_step
    error: BaseException | None = None
    try:
        snapshot.check_finite(sharded.local_weights(), step, target.parent)
    except TrainingError as caught:  # the other workers must hear of it
        error = caught
    parts = _common_folder(target)
    written = sharded.begin(parts)
    writers = _other_writers(trainer, states) if states is not None else []
    if hasattr(trainer.model, "peft_config"):
        from peft import get_peft_model_state_dict

        whole = sharded.whole_weights(keep=states is not None)
        if states is not None:
            named = get_peft_model_state_dict(trainer.model, state_dict=whole, save_embedding_layers=False)
            writers.append(snapshot.adapter_writer(trainer.model, named))
    else:
        config = copy.deepcopy(trainer.model.config)
        writers.append(lambda folder: config.save_pretrained(str(folder)))
    place = _placing(trainer, target, writers)

    def work() -> None:
        failed = error
        try:
            written.result()
        except BaseException as caught:  # noqa: BLE001 - torch's is no Exception; raised below, once the others know
            failed = failed or caught
        try:
            everywhere = sharded.all_ok(failed is None)
            if failed is not None:
                raise failed
            if everywhere and states is not None:
                place(parts)
        finally:
            if states is not None:
                shutil.rmtree(parts, ignore_errors=True)

    return work


def deepspeed_work(trainer: Any, save: Callable[[Path], None], target: Path) -> Work:
    """DeepSpeed's own checkpoint, which only its engine can write, and only in the training thread.

    Args:
        save: lets every worker write its part into a folder.
    """
    parts = _common_folder(target)
    save(parts)
    first = trainer.args.process_index == 0
    place = _placing(trainer, target, [])

    def work() -> None:
        if first:
            place(parts / target.name)
            shutil.rmtree(parts, ignore_errors=True)

    return work


def _placing(trainer: Any, target: Path, writers: list[snapshot.Writer]) -> Callable[[Path | None], None]:
    """Return what puts a checkpoint in its place: a folder's files, if any, what the writers write, and the state."""
    write_state = snapshot.state_writer(trainer.state)
    limit, best, still_ours = trainer.args.save_total_limit, trainer.state.best_model_checkpoint, trainer.still_ours

    def place(parts: Path | None) -> None:
        with background.staged(target.parent, target.name, still_ours=still_ours) as staging:
            for part in parts.iterdir() if parts else ():
                shutil.move(part, staging / part.name)
            for write in writers:
                write(staging)
            write_state(staging)
        background.rotate(target.parent, limit, best=best, written=target.name)

    return place


def _weights(trainer: Any) -> tuple[dict[str, torch.Tensor], snapshot.Writer]:
    if hasattr(trainer.model, "peft_config"):
        from peft import get_peft_model_state_dict

        weights = snapshot.to_host(get_peft_model_state_dict(trainer.model, save_embedding_layers=False))
        return weights, snapshot.adapter_writer(trainer.model, weights)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    weights = snapshot.to_host(model.state_dict())
    # Under the names in memory, by which a resume reads them: those of the model's origin would be skipped silently.
    return weights, lambda folder: model.save_pretrained(str(folder), state_dict=weights, save_original_format=False)


def _other_writers(trainer: Any, states: list[dict[str, Any]]) -> list[snapshot.Writer]:
    """Return what writes the tokenizer and, of the state, what does not belong to the optimiser."""
    tokenizer = trainer.processing_class
    writers: list[snapshot.Writer] = [lambda folder: tokenizer.save_pretrained(str(folder))]
    if trainer.args.save_only_model:
        return writers
    parts = {"scheduler.pt": trainer.lr_scheduler.state_dict()}
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None:
        parts["scaler.pt"] = scaler.state_dict()
    for rank, state in enumerate(states):
        parts[snapshot.random_state_name(rank, len(states))] = state
    return writers + [snapshot.torch_writer(name, copy.deepcopy(part)) for name, part in parts.items()]


def _random_states(trainer: Any) -> list[dict[str, Any]] | None:
    """Return every worker's random state on the first worker, None on the others."""
    return snapshot.gather_random_states(every_device=trainer.args.parallel_mode == ParallelMode.DISTRIBUTED)


def _common_folder(target: Path) -> Path:
    """Make a hidden folder beside a checkpoint-to-be, the same one on every worker.

    Raises:
        OutputError: it cannot be made; on every worker.
    """
    several = dist.is_initialized() and dist.get_world_size() > 1
    made: list[str | OutputError] = [""]
    if not several or dist.get_rank() == 0:
        try:
            made = [tempfile.mkdtemp(dir=target.parent, prefix=f"{background.STAGING}{target.name}.")]
        except OSError as error:
            made = [OutputError(f"{target}: cannot be written: {error.strerror}")]
    if several:
        dist.broadcast_object_list(made, src=0)
    if isinstance(made[0], OutputError):
        raise made[0]
    return Path(made[0])
