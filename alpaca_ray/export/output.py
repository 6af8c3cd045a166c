"""The output folder of an export: made beside its place, moved there when it is whole, and never mixed with others'."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_ray.errors import OutputError
from alpaca_ray.manifest import FILE_NAME as MANIFEST_FILE
from alpaca_ray.manifest import read_json_object
from alpaca_ray.models import CACHE_ENV, cache_folder
from alpaca_ray.storage import check_output, hold_name, make_folder, sync_folder, umask

STAGE = "export"
# Names what is about to be moved into a folder that others' files lie in; gone when all of it is there.
JOURNAL = ".export_files.json"
# What makes a folder somebody's model: an export mixed into it would be neither.
_MODEL_MARKS = ("config.json", "adapter_config.json", "params.json", "*.safetensors", "*.bin", "*.pth", "Modelfile")


def check(folder: Path, *, overwrite: bool) -> None:
    """Check, without touching anything, that an export may write into a folder.

    Raises:
        OutputError: it holds an export and ``--overwrite`` is not given, another stage's result, or a model that no
            export wrote; or it cannot be written.
    """
    ours = _ours(folder)
    if ours and not overwrite:
        raise OutputError(
            f"--output_dir {folder} already holds {ours[0]}: give --overwrite to start anew, or another folder"
        )
    stage = (read_json_object(folder / MANIFEST_FILE) or {}).get("stage")
    if stage not in (None, STAGE):
        raise OutputError(
            f"--output_dir {folder} already holds {MANIFEST_FILE} of another stage ({stage}): give another folder"
        )
    foreign = sorted(path.name for mark in _MODEL_MARKS for path in folder.glob(mark) if path.name not in ours)
    if foreign:
        raise OutputError(
            f"--output_dir {folder} already holds {foreign[0]}, which no export wrote: give another folder"
        )
    check_output(folder, [], resume=False, overwrite=overwrite)


@contextmanager
def staged(folder: Path, *, overwrite: bool, size: int) -> Iterator[Path]:
    """Yield an empty folder whose files become ``folder``'s when the block ends well; else nothing has changed.

    Args:
        folder: absolute path. Files in it that no export wrote stay as they are.
        size: bytes that will be written, held against the free space before anything is.

    Raises:
        OutputError: as ``check``; another run holds the folder; or the disk has no room.
    """
    check(folder, overwrite=overwrite)
    with hold_name(folder, cache_folder(), CACHE_ENV):
        check(folder, overwrite=overwrite)
        make_folder(folder.parent)
        prefix = f".{folder.name}.export-"
        for left in folder.parent.glob(f"{prefix}{'?' * 8}"):  # of a run that was killed: we hold the name
            shutil.rmtree(left)
        free = shutil.disk_usage(folder.parent).free
        if free < size:
            raise OutputError(
                f"--output_dir {folder}: {size / 1e9:.1f} GB are needed there, and {free / 1e9:.1f} GB are free"
            )
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        try:
            yield staging
            _publish(staging, folder)
        except OSError as error:
            raise OutputError(f"--output_dir {folder}: cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _ours(folder: Path) -> list[str]:
    """Return the names of the files in a folder that an export wrote, or was about to when it was killed."""
    names: set[str] = set()
    manifest = read_json_object(folder / MANIFEST_FILE) or {}
    if manifest.get("stage") == STAGE:
        names |= {*manifest.get("outputs", {}), MANIFEST_FILE}
    journal = read_json_object(folder / JOURNAL)
    if journal is not None:
        names |= {*journal.get("files", []), JOURNAL}
    return sorted(name for name in names if (folder / name).is_file())


def _publish(staging: Path, folder: Path) -> None:
    for entry in staging.iterdir():
        os.chmod(entry, 0o666 & ~umask())
    os.chmod(staging, 0o777 & ~umask())
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(staging, folder)
        sync_folder(folder.parent)
        return
    names = sorted((entry.name for entry in staging.iterdir()), key=lambda name: name == MANIFEST_FILE)
    old = _ours(folder)
    temporary = staging / JOURNAL
    temporary.write_text(json.dumps({"files": sorted({*names, *old} - {JOURNAL})}), encoding="utf-8")
    os.replace(temporary, folder / JOURNAL)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)  # from here on the folder is not complete
    for name in old:
        if name != JOURNAL:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        os.replace(staging / name, folder / name)
    (folder / JOURNAL).unlink()
    sync_folder(folder)
