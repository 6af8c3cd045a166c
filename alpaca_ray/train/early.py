"""What an output folder says of a run before Ray starts: a run that must be refused is refused at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alpaca_ray import storage
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import claim, identity
from alpaca_ray.train.plan import make_plan
from alpaca_ray.train.restart import origin


def known_folder(settings: TrainSettings, *, one_node: bool) -> Path | None:
    """Return the output folder, or None where only the cluster tells: a relative one means another on several nodes.

    Args:
        one_node: whether the cluster is known to be one node.

    Raises:
        OutputError: it cannot be one.
    """
    folder, given = storage.resolve_output(settings.output_dir), settings.output_dir
    absolute = given.startswith("file://") or Path(given).expanduser().is_absolute()
    return folder if absolute or storage.in_uploaded_working_dir() or one_node else None


def check(
    settings: TrainSettings,
    template: PromptTemplate,
    records: tuple[Sequence[Record], Sequence[Record]],
    source: str,
    restart_from: Path | None,
    *,
    one_node: bool,
) -> None:
    """Check that the run may have its folder, as far as that is known. It is checked again once the folder is taken.

    Args:
        records: to learn, and held out.
        source: the model's absolute path, or its hub id.
        restart_from: the checkpoint from which it begins, if any.
        one_node: as ``known_folder``.

    Raises:
        OutputError: it may not.
    """
    folder = known_folder(settings, one_node=one_node)
    if folder is None:
        return
    claim.check_early(folder, resume=settings.resume, overwrite=settings.overwrite)
    if not settings.resume or claim.may_be_put_back(folder):
        return
    begun_with = identity.step_samples(folder)
    plan = make_plan(settings, has_gpus=True, begun_with=begun_with, may_be_uneven=begun_with is not None)
    now = identity.identity(settings, plan, template, records, source, origin(restart_from))
    # The precision follows from what the cluster has.
    identity.check_same_run(folder, now, records[1], unknown=("precision",))
