"""What a run that is interrupted says: where it stopped, and how to go on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray.train import claim, progress, publish


@contextmanager
def saying_where(folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Let an interrupt that ends the block say where the run in ``folder`` stopped.

    Inside ``claim.claimed``: afterwards the folder may be as it was before the run.

    Raises:
        KeyboardInterrupt: there was one; its text is for ``errors.run_main``.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(where(folder, overwrite=overwrite)) from error


def where(folder: Path, *, overwrite: bool) -> str:
    """Return where a run stopped that holds ``folder``, and what goes on from there.

    Args:
        overwrite: whether it began in place of an earlier run.
    """
    newest = publish.newest_checkpoint(folder)
    if claim.may_be_put_back(folder):
        if newest is not None and not overwrite:
            return f"before its first step: {_goes_on(newest)}"
        return f"before its first step: nothing was written{f', {folder} is as it was' if overwrite else ''}"
    rows = progress.read_metrics(folder)
    last = max(rows, key=lambda row: row.get("step", 0), default={})
    step = max(int(last.get("step", 0)), int(newest.name.rpartition("-")[2]) if newest else 0)
    total = f"/{last['total_steps']}" if last.get("total_steps") else ""
    reached = f"after step {step}{total}, the last one shown or saved"
    if newest is None:
        return f"{reached}; no checkpoint is whole yet: --resume begins at the first step"
    return f"{reached}; {_goes_on(newest)}{', in place of --overwrite' if overwrite else ''}"


def _goes_on(newest: Path) -> str:
    return f"the newest whole checkpoint is {newest}; the same command goes on from it with --resume"
