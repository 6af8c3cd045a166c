"""Large data encoded by tasks of Ray Data on all nodes, before the workers start. Runs in the driver."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.encode import IGNORE_INDEX, Sample, encode
from alpaca_ray.train.encoded import FOLDER, load_or_encode

# About ten seconds of one core. Below, starting the tasks and their tokenizers takes longer than they save.
LARGE = 25_000
_CHUNK = 2_000


def encoding_options(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that ``encode`` takes."""
    return {
        "max_length": settings.model_max_length,
        "train_on_inputs": settings.train_on_inputs,
        "add_eos": settings.ends_samples,
    }


def encode_ahead(
    output: Path, records: Sequence[Record], settings: TrainSettings, template: PromptTemplate, source: str
) -> bool:
    """Encode records into the run's folder where they are many; returns whether they were.

    Raises:
        DataError: as ``encode``.
        ModelError: the tokenizer cannot be loaded.
    """
    if len(records) < LARGE:
        return False
    from alpaca_ray.train.tokenizer import build_tokenizer

    load_or_encode(
        output / FOLDER,
        records,
        build_tokenizer(settings, source),
        template,
        make=functools.partial(by_tasks, records, settings, template, source),
        **encoding_options(settings),
    )
    return True


def by_tasks(
    records: Sequence[Record], settings: TrainSettings, template: PromptTemplate, source: str
) -> Iterator[list[Sample]]:
    """Yield the samples of each chunk of records, in order, encoded by Ray Data.

    Raises:
        DataError: as ``encode``.
    """
    import ray

    from alpaca_ray.generate.fanout import quiet_ray_data

    quiet_ray_data()
    references = [ray.put(records[start : start + _CHUNK]) for start in range(0, len(records), _CHUNK)]
    task = functools.partial(_encode_chunk, references=references, settings=settings, template=template, source=source)
    dataset = ray.data.range(len(references), override_num_blocks=len(references)).map_batches(
        task, batch_size=1, num_cpus=1
    )
    waiting: dict[int, list[Sample]] = {}
    following = 0
    for row in dataset.iter_rows():  # in whatever order the tasks end
        if row["error"]:
            raise pickle.loads(row["error"])
        waiting[int(row["chunk"])] = _samples(row)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _encode_chunk(
    batch: dict[str, Any], *, references: list[Any], settings: TrainSettings, template: PromptTemplate, source: str
) -> dict[str, Any]:
    import ray

    number = int(batch["id"][0])
    try:
        samples = encode(
            ray.get(references[number]),
            _tokenizer(pickle.dumps(settings), source),
            template,
            may_be_empty=True,
            **encoding_options(settings),
        )
    except AlpacaRayError as error:  # as a row: Ray Data would end with a traceback of its own
        none = np.zeros(0, dtype=np.int32)
        row = {"lengths": [none], "ids": [none], "learnt": [none.astype(bool)]}
        return {"chunk": [number], "error": [pickle.dumps(error)], **row}
    lengths = np.array([len(sample["input_ids"]) for sample in samples], dtype=np.int32)
    ids = np.array([token for sample in samples for token in sample["input_ids"]], dtype=np.int32)
    learnt = np.array([label != IGNORE_INDEX for sample in samples for label in sample["labels"]], dtype=bool)
    return {"chunk": [number], "error": [b""], "lengths": [lengths], "ids": [ids], "learnt": [learnt]}


def _samples(row: dict[str, Any]) -> list[Sample]:
    ends = np.cumsum(row["lengths"])[:-1]
    labels = np.where(row["learnt"], row["ids"], IGNORE_INDEX)
    return [
        {"input_ids": ids.tolist(), "labels": own.tolist()}
        for ids, own in zip(np.split(row["ids"], ends), np.split(labels, ends), strict=True)
    ]


@functools.lru_cache(maxsize=1)
def _tokenizer(settings: bytes, source: str) -> Any:
    """A process keeps its tokenizer from one chunk to the next."""
    from alpaca_ray.train.tokenizer import build_tokenizer

    return build_tokenizer(pickle.loads(settings), source)
