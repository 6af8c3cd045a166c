"""Encoded samples as a file: made once, kept across restarts, and mapped into memory by every worker of a machine.

Layout: an 8-byte mark, the numbers of samples and of tokens (int64), then where each sample begins and the last one
ends (samples + 1, int64), the ids (int32), and for each whether it is learnt (uint8); all little-endian. The file's
name is the digest of everything that the samples depend on, so that a file that is there is the right one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record, digest
from alpaca_ray.storage import write_atomic
from alpaca_ray.train.encode import IGNORE_INDEX, Sample, encode, nothing_to_learn

FOLDER = ".encoded"
_MARK = b"alpaca1\n"


class Encoded(Sequence[Sample]):
    """The samples of a file, read where they are asked for: five bytes a token on disk, and no list in memory."""

    def __init__(self, path: Path) -> None:
        """Map a file.

        Raises:
            ValueError: it is no such file, or not whole.
        """
        self._path = path
        data = np.memmap(path, dtype=np.uint8, mode="r")
        if data[:8].tobytes() != _MARK:
            raise ValueError(f"{path}: holds no encoded samples")
        samples, tokens = (int(number) for number in data[8:24].view("<i8"))
        starts = 24 + 8 * (samples + 1)
        if len(data) != starts + 5 * tokens:
            raise ValueError(f"{path}: is not whole")
        self._starts = data[24:starts].view("<i8")
        self._ids = data[starts : starts + 4 * tokens].view("<i4")
        self._learnt = data[starts + 4 * tokens :].view(bool)

    def __reduce__(self) -> tuple[type[Encoded], tuple[Path]]:
        return Encoded, (self._path,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> list[int]:
        """The tokens of each sample."""
        found: list[int] = np.diff(self._starts).tolist()
        return found

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = slice(self._starts[index], self._starts[index + 1])
        ids = self._ids[part]
        labels = np.where(self._learnt[part], ids, IGNORE_INDEX)
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}

    def any_learnt(self) -> bool:
        """Whether any token has a loss (the first of a sample has none: there is no position that predicts it)."""
        learnt = self._learnt.copy()
        learnt[self._starts[:-1][np.diff(self._starts) > 0]] = False
        return bool(learnt.any())


def lengths_of(samples: Sequence[Sample]) -> list[int]:
    """Return the tokens of each sample."""
    return samples.lengths if isinstance(samples, Encoded) else [len(sample["input_ids"]) for sample in samples]


def load_or_encode(
    folder: Path,
    records: Sequence[Record],
    tokenizer: Any,
    template: PromptTemplate,
    *,
    may_be_empty: bool = False,
    make: Callable[[], Iterable[list[Sample]]] | None = None,
    **options: Any,
) -> Encoded:
    """Return the samples of records, encoded only where no worker has done so yet.

    Args:
        folder: where the file is kept; workers that share it take turns.
        make: what yields the samples, part by part, in place of ``encode`` here.
        options: of ``encode``.

    Raises:
        DataError: as ``encode``.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / key(records, tokenizer, template, **options)
    with FileLock(f"{path}.lock"):
        try:
            found = Encoded(path)
        except (OSError, ValueError):  # not there, or of a disk that was full
            parts = make() if make else [encode(records, tokenizer, template, may_be_empty=True, **options)]
            write(path, parts)
            found = Encoded(path)
    if not may_be_empty and not found.any_learnt():
        raise nothing_to_learn(options["max_length"])
    return found


def write(path: Path, parts: Iterable[list[Sample]]) -> None:
    """Write samples into a file, which appears whole or not at all."""
    lengths: list[int] = []
    ids: list[np.ndarray[Any, Any]] = []
    learnt: list[np.ndarray[Any, Any]] = []
    for part in parts:
        lengths += [len(sample["input_ids"]) for sample in part]
        ids.append(np.array([token for sample in part for token in sample["input_ids"]], dtype="<i4"))
        labels = np.array([label for sample in part for label in sample["labels"]], dtype="<i4")
        learnt.append(labels != IGNORE_INDEX)
    starts = np.concatenate([[0], np.cumsum(lengths, dtype="<i8")]).astype("<i8")
    head = _MARK + np.array([len(lengths), starts[-1]], dtype="<i8").tobytes() + starts.tobytes()

    def pieces() -> Iterator[bytes]:
        yield head
        for array in (*ids, *learnt):
            yield array.tobytes()

    write_atomic(path, pieces())


def key(records: Sequence[Record], tokenizer: Any, template: PromptTemplate, **options: Any) -> str:
    """Return the digest of records, tokenizer, template and options: 32 hexadecimal digits."""
    whole = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    whole.update(template.to_json().encode("utf-8", "surrogatepass"))
    whole.update(_tokenizer_text(tokenizer).encode("utf-8", "surrogatepass"))
    for record in records:
        whole.update(f"{record.get('id')} {digest(record)}\n".encode("utf-8", "surrogatepass"))
    return whole.hexdigest()[:32]


def _tokenizer_text(tokenizer: Any) -> str:
    """All that decides what a tokenizer does: its rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:  # what the last call left there
        rules = {name: value for name, value in rules.items() if name not in ("truncation", "padding")}
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    template = str(getattr(tokenizer, "chat_template", None))
    return json.dumps([type(tokenizer).__name__, rules, special, template], sort_keys=True)
