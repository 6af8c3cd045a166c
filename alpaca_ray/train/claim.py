"""An output folder taken for a run: what counts as ours in it, and the way back while nothing is known to work. Pure.

Old files are set aside in a hidden folder, by renaming, and put back until the first step has been taken: a run that
never gets so far changes nothing. The hidden folder itself is the mark: as long as it is there, no step was taken.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray import storage
from alpaca_ray.errors import OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST_FILE
from alpaca_ray.manifest import read_manifest
from alpaca_ray.signals import interrupts_later
from alpaca_ray.train import background, encoded, progress, publish
from alpaca_ray.train.data import HELDOUT_FILE
from alpaca_ray.train.identity import IDENTITY_FILE

STAGE = "train"
# Old files on their way out or back (nothing new is written yet), all of them set aside, and given up.
_MOVING = ".replaced.moving"
_ASIDE = ".replaced"
_SETTLED = ".replaced.done"
_OLD = ".names.json"  # beside what was set aside: every entry of ours that was in the folder

# What the driver writes before the workers start.
_EARLY = (MANIFEST_FILE, publish.SETTINGS_FILE, HELDOUT_FILE, IDENTITY_FILE)
# Only a run of ours writes these; a folder with model files but none of them is somebody's model.
_MARKS = {*_EARLY, progress.METRICS_FILE}
_MODEL_FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    publish.TEMPLATE_FILE,
}
_NAMES = (
    _MARKS | _MODEL_FILES | {progress.PLOT_FILE, progress.LENGTHS_FILE, progress.TRACKER_FOLDER, publish.RAY_FOLDER}
) | {encoded.FOLDER}
_PATTERN = re.compile(r"checkpoint-\d+|model-\d{5}-of-\d{5}\.safetensors")


def ours(folder: Path) -> list[Path]:
    """Return the entries of a folder that a training run wrote or would write; ``run.json`` only of this stage."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name in _NAMES or _PATTERN.fullmatch(entry.name)]
    samples = folder / progress.SAMPLES_FILE
    if samples.is_file() and progress.is_ours(samples):
        found.append(samples)
    card = folder / progress.CARD_FILE
    if card.is_file() and progress.CARD_MARK in card.read_text(encoding="utf-8", errors="replace"):
        found.append(card)  # any other README is somebody's own
    return sorted(entry for entry in found if entry.name != MANIFEST_FILE or _stage(folder) == STAGE)


def check(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check, without touching anything, that a run may write into a folder.

    Raises:
        OutputError: it holds an earlier run and no flag says what to do with it, another stage's result, or a model
            that this program did not make; or it cannot be written.
    """
    if (folder / MANIFEST_FILE).is_file() and (stage := _stage(folder)) != STAGE:
        raise OutputError(
            f"--output_dir {folder} already holds {MANIFEST_FILE} of another stage ({stage or 'unknown'}): "
            "give another folder"
        )
    used = ours(folder)
    if used and not any(entry.name in _MARKS for entry in used):
        raise OutputError(
            f"--output_dir {folder} already holds {used[0].name}, which no run of this program wrote: give another "
            "folder"
        )
    # Hidden entries are named to nobody who sees others.
    seen = [entry for entry in used if not entry.name.startswith(".")] or used
    names = [glob.escape(entry.name) for entry in seen]
    storage.check_output(folder, names, resume=resume, overwrite=overwrite)


def check_early(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check what ``claimed`` will, as far as it can be seen without taking the folder: long before it is needed.

    Raises:
        OutputError: as ``claimed``.
    """
    if not may_be_put_back(folder):  # else the check has to wait until it is
        check(folder, resume=resume, overwrite=overwrite)
    if (folder / storage.LOCK_FILE).exists():
        with storage.hold_output(folder):
            pass


def may_be_put_back(folder: Path) -> bool:
    """Whether a folder is still to be what it was before the run that holds it, or that was killed in it."""
    return any((folder / name).is_dir() for name in (_MOVING, _ASIDE))


@contextmanager
def claimed(
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    examine: Callable[[], None],
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Take an output folder until the block ends, and leave it as it was if the block fails before ``settle``.

    Args:
        folder: absolute path; made where it does not exist.
        resume: go on in it; only what the driver writes anew is set aside.
        overwrite: set aside every file of ours. Nothing else in the folder is ever touched.
        examine: called once the folder is held, before anything in it changes; may raise.
        tell: told what a killed run left and what became of it.

    Raises:
        OutputError: the folder cannot be taken, or another run holds it.
    """
    check_early(folder, resume=resume, overwrite=overwrite)
    made = _make(folder)
    try:
        with storage.hold_output(folder):
            if _recover(folder):
                tell(
                    f"the last run in {folder} ended before its first step: the earlier run that it was to replace was "
                    "put back"
                )
            check(folder, resume=resume, overwrite=overwrite)
            examine()
            old = ours(folder)
            _set_aside(folder, [entry for entry in old if overwrite or entry.name in _EARLY], old)
            try:
                yield
            except BaseException:
                with interrupts_later():
                    if (folder / _ASIDE).is_dir():
                        _restore(folder)
                    else:
                        _tidy(folder, resume=resume)
                raise
    finally:
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def settle(folder: Path) -> None:
    """Delete for good what was set aside. Called by the first worker after the first step."""
    if (folder / _ASIDE).is_dir():
        os.replace(folder / _ASIDE, folder / _SETTLED)  # one step: a crash while deleting must not restore half of it
    _remove(folder / _SETTLED)


def _stage(folder: Path) -> str | None:
    content = read_manifest(folder)
    return str(content["stage"]) if content and content.get("stage") else None


def _make(folder: Path) -> list[Path]:
    """Make a folder and return those that were not there before, the innermost first."""
    made = [path for path in [folder, *folder.parents] if not path.exists()]
    storage.make_folder(folder)
    return made


def kept_in(folder: Path) -> Path:
    """Return where the identity of a folder's run lies, also after a kill before the first step: it comes back."""
    aside = folder / _ASIDE
    if aside.is_dir():
        return aside
    return folder / _MOVING if (folder / _MOVING / IDENTITY_FILE).is_file() else folder


def _set_aside(folder: Path, entries: list[Path], old: list[Path]) -> None:
    """Set entries aside, and write down which entries of ours there were: what comes beside them is the new run's."""
    (folder / _MOVING).mkdir()
    try:
        (folder / _MOVING / _OLD).write_text(json.dumps([entry.name for entry in old]), encoding="utf-8")
        storage.sync_file(folder / _MOVING / _OLD)
        for entry in entries:
            os.replace(entry, folder / _MOVING / entry.name)
    except BaseException:
        _move_back(folder)
        raise
    os.replace(folder / _MOVING, folder / _ASIDE)


def _recover(folder: Path) -> bool:
    """Put right what a killed run left; returns whether another run came back that it was to replace.

    Its workers may outlive it by some seconds: without its token they write no checkpoint more.
    """
    _remove(folder / publish.RAY_FOLDER)
    replaced = any(
        entry.name not in (*_EARLY, _OLD)
        for name in (_MOVING, _ASIDE)
        if (folder / name).is_dir()
        for entry in (folder / name).iterdir()
    )
    _move_back(folder)
    if (folder / _ASIDE).is_dir():
        _restore(folder)
    _remove(folder / _SETTLED)
    background.sweep(folder)
    for entry in folder.glob(f"{publish.STAGING}*"):
        _remove(entry)
    return replaced


def _restore(folder: Path) -> None:
    background.sweep(folder)
    publish.remove_bookkeeping(folder)
    for name in (publish.RAY_FOLDER, encoded.FOLDER, *_EARLY):
        _remove(folder / name)
    try:
        old = set(json.loads((folder / _ASIDE / _OLD).read_text(encoding="utf-8")))
    except (OSError, ValueError):  # an earlier version wrote none
        old = {entry.name for entry in ours(folder)}
    for entry in ours(folder):
        if entry.name not in old:
            _remove(entry)
    os.replace(folder / _ASIDE, folder / _MOVING)
    _move_back(folder)


def _move_back(folder: Path) -> None:
    if (folder / _MOVING).is_dir():
        for entry in (folder / _MOVING).iterdir():
            if entry.name != _OLD:
                os.replace(entry, folder / entry.name)
        _remove(folder / _MOVING / _OLD)
        (folder / _MOVING).rmdir()


def _tidy(folder: Path, *, resume: bool) -> None:
    """After a failure, remove what no resume needs, and our files where nothing at all came of the run."""
    _remove(folder / publish.RAY_FOLDER)
    publish.remove_bookkeeping(folder)
    background.sweep(folder)
    if not resume and not publish.checkpoints(folder) and not progress.read_metrics(folder):
        for name in (*_EARLY, progress.METRICS_FILE, encoded.FOLDER):
            _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
