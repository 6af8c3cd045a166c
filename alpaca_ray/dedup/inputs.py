"""What a deduplication reads: found, opened and known by its content before anything is written."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_ray import __version__
from alpaca_ray.console import say
from alpaca_ray.dedup.stream import instruction_of
from alpaca_ray.errors import DataError, OutputError
from alpaca_ray.manifest import file_digest, is_unfinished, read_manifest
from alpaca_ray.novelty.decontaminate import Decontaminator, evaluation_prompts
from alpaca_ray.records import source_path
from alpaca_ray.rows import check_source, locate, read_rows
from alpaca_ray.settings.dedup import DedupSettings

# What decides which records are kept and what is told of them, beside the files.
_DECIDING = ("threshold", "similarity_stats", "tokenizer", "decontaminate_threshold")


class Inputs:
    """Sources of records, and what they are compared with.

    Attributes:
        sources: of the records, in order.
        seeds: instructions that are there first.
        decontaminator: knows the prompts of the evaluation sets; None where there are none.
    """

    def __init__(self, settings: DedupSettings) -> None:
        """Read seeds and evaluation prompts, and check that every source of records is there.

        Raises:
            DataError: one is missing or malformed, or is a hub dataset that cannot be read.
        """
        self._settings = settings
        self.sources = [source_path(source) for source in settings.data_path]
        for source in self.sources:
            check_source(source)
            if is_unfinished(Path(source).expanduser()):
                say(f"warning: the run in {source} has not finished: these are the records that it has so far")
        self.seeds: list[str] = []
        if settings.seed_tasks_path:
            name = source_path(settings.seed_tasks_path)
            self.seeds = [instruction_of(row, f"{name}: record {number}") for number, row in enumerate(read_rows(name))]
            if not self.seeds:
                raise DataError(f"{name}: holds no records")
        prompts = [prompt for source in settings.decontaminate or [] for prompt in evaluation_prompts(source)]
        self.decontaminator = (
            Decontaminator(
                prompts,
                threshold=settings.decontaminate_threshold,
                workers=settings.num_cpus or -1,
                tokenizer_name=settings.tokenizer,
            )
            if prompts
            else None
        )

    @property
    def all(self) -> list[tuple[str, str]]:
        """Flag and source of everything that is read."""
        given = self._settings
        return [
            *(("data_path", source) for source in self.sources),
            *([("seed_tasks_path", source_path(given.seed_tasks_path))] if given.seed_tasks_path else []),
            *(("decontaminate", source) for source in given.decontaminate or []),
        ]

    def check_apart(self, folder: Path, outputs: Sequence[str]) -> None:
        """Check that no file is both read and written.

        Raises:
            OutputError: one of the ``outputs`` in ``folder`` is an input.
        """
        ours = {(folder / name).resolve(): name for name in outputs}
        for flag, source in self.all:
            path = _local(source)
            if path is not None and path.resolve() in ours:
                raise OutputError(
                    f"--{flag} {source}: is {ours[path.resolve()]} of --output_dir {folder}, which would be replaced: "
                    "give another folder"
                )

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the decisions depend on: settings, and the content of what is read (of a hub's or a bucket's the name).

        Raises:
            DataError: a ``run.json`` beside a file is broken, or a file cannot be read.
        """
        files = []
        for flag, source in self.all:
            path = _local(source)
            if path is not None:
                read_manifest(path.parent)  # its run is named in ours: better refused now than at the end
            if flag == "data_path":
                files.append([source, _content(source, path) if path is not None else None])
        prompts = self.decontaminator.prompts if self.decontaminator else []
        return {
            "version": __version__,
            "data_path": files,
            "seed_tasks_path": _digest(self.seeds),
            "decontaminate": _digest(prompts),
            **{name: getattr(self._settings, name) for name in _DECIDING},
        }


def _content(source: str, path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error


def _local(source: str) -> Path | None:
    """Return the file that a source means on this machine; None for a hub's and a bucket's."""
    if source.startswith("file://"):
        import fsspec

        return Path(fsspec.core.strip_protocol(source))  # as it is read: without decoding of `%20`
    name, on_hub = locate(source)
    path = Path(name)
    return None if on_hub or not path.is_file() else path


def _digest(texts: Sequence[str]) -> str | None:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest() if texts else None
