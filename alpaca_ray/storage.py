"""Paths: resolved once, in the driver; files replaced atomically; output folders claimed before anything runs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from alpaca_ray.errors import DataError, OutputError

STORAGE_ENV = "ALPACA_RAY_STORAGE"
LOCK_FILE = ".lock"
_URI = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_uri(path: str) -> bool:
    """Whether a path is a URI such as ``s3://bucket/key``."""
    return bool(_URI.match(path))


@contextmanager
def open_input(path: str) -> Iterator[IO[Any]]:
    """Open a local path or an fsspec URI for reading bytes.

    Raises:
        DataError: it does not exist or cannot be read.
    """
    import fsspec

    try:
        handle = fsspec.open(path, "rb").open()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    with handle:
        yield handle


def in_uploaded_working_dir() -> bool:
    """Whether the current directory is a copy that Ray made for a submitted job (and may delete when it likes)."""
    return "runtime_resources" in Path.cwd().parts and "working_dir_files" in Path.cwd().parts


def resolve_output(path: str, *, several_nodes: bool = False) -> Path:
    """Return the absolute folder that an output flag means.

    A relative path means the current directory, except where that directory does not last (a submitted job's copy) or
    is one of several (a cluster of more than one node): there it lies below ``$ALPACA_RAY_STORAGE``.

    Raises:
        OutputError: the path is a bucket URI, or relative where ``$ALPACA_RAY_STORAGE`` is needed and not set.
    """
    if not path.strip():
        raise OutputError("--output_dir: is empty: name a folder")
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    if is_uri(path):
        raise OutputError(
            f"--output_dir {path}: must be a folder (for a bucket, mount it or copy the folder there afterwards)"
        )
    given = Path(path).expanduser()
    storage = os.environ.get(STORAGE_ENV)
    if given.is_absolute():
        resolved = given
    elif in_uploaded_working_dir() or several_nodes:
        if not storage:
            why = (
                "this job runs in a copy of your folder that Ray may delete"
                if in_uploaded_working_dir()
                else "this cluster has several nodes, and a relative path means another folder on each of them"
            )
            raise OutputError(
                f"--output_dir {path} is relative, and {why}: give an absolute path, or set {STORAGE_ENV} to a folder "
                "below which relative outputs go"
            )
        resolved = Path(storage).expanduser() / given
    else:
        resolved = Path.cwd() / given
    resolved = Path(os.path.normpath(resolved))
    if resolved.exists() and not resolved.is_dir():
        raise OutputError(f"--output_dir {resolved}: exists and is not a folder")
    return resolved


def location(path: Path) -> str:
    """Return where a path lies, for the last line of a job: host name and absolute path."""
    return f"{path} on node {socket.gethostname()}"


def used_by(folder: Path, ours: Sequence[str]) -> list[Path]:
    """Return the entries of ``folder`` that match one of the glob patterns ``ours``."""
    if not folder.is_dir():
        return []
    return sorted({found for pattern in ours for found in folder.glob(pattern)})


def check_output(folder: Path, ours: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Check, without touching anything, that ``claim_output`` will let a folder be written.

    Raises:
        OutputError: it is used and neither flag is given, both flags are given, or it cannot be created.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite contradict each other: give one of them")
    used = used_by(folder, ours)
    if used and not (resume or overwrite):
        raise OutputError(
            f"--output_dir {folder} already holds {used[0].name}: give --resume to go on, --overwrite to start anew, "
            "or another folder"
        )
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"--output_dir {folder}: cannot be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"--output_dir {folder}: cannot be written: no permission to write in {existing}")


def make_folder(folder: Path) -> None:
    """Make an output folder and prove that it can be written.

    Raises:
        OutputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"--output_dir {folder}: cannot be written: {error.strerror}") from error


def claim_output(folder: Path, ours: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Check that an output folder may be written, and clear files of ours out of it where ``overwrite`` says so.

    A folder counts as used when it holds files of ours (glob patterns ``ours``); nothing else in it is ever touched.

    Raises:
        OutputError: it is used and neither flag is given, both flags are given, or it cannot be created.
    """
    check_output(folder, ours, resume=resume, overwrite=overwrite)
    if overwrite:
        for entry in used_by(folder, ours):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    make_folder(folder)


def write_atomic(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Replace a file in one step: a reader sees the old content or the new one, also after a crash.

    ``content`` may come in pieces, for files that are larger than the memory.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    pieces = [content] if isinstance(content, bytes) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that takes its place in one step when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~umask())
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
            os.replace(target, old / target.name)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def umask() -> int:
    """Return the process's file mode creation mask: what temporary files, made private, must be opened up to.

    Any thread may ask. The system call answers only while it sets another mask, and what two threads then put back may
    be the other one's.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):
        return _UMASK


def _ask_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_UMASK = _ask_umask()  # where the system does not tell otherwise


def sync_folder(folder: Path) -> None:
    """Make the names of new files in a folder durable, as ``fsync`` makes their content."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Make a file's content durable, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_output(folder: Path) -> Iterator[None]:
    """Hold an existing output folder until the block ends, so that a second run on it is refused.

    Raises:
        OutputError: another run holds it.
    """
    with _locked(folder / LOCK_FILE, folder):
        yield


@contextmanager
def hold_name(folder: Path, beside: Path, variable: str) -> Iterator[None]:
    """Hold an output folder that does not exist yet until the block ends, by a file below the folder ``beside``.

    Args:
        variable: of the environment, that names another place for ``beside``.

    Raises:
        OutputError: another run holds it, or ``beside`` cannot be written.
    """
    locks = beside / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{locks}: cannot be written: {error.strerror}; {variable} names another place") from error
    with _locked(locks / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16], folder):
        yield


@contextmanager
def _locked(path: Path, folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"--output_dir {folder}: another run is at work in it: wait for it, or take another"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: afterwards it may be another run's
        lock.release()
