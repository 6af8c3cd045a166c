"""Settings of ``jobs/dedup.py``."""

from __future__ import annotations

from typing import Literal

from alpaca_ray.settings.base import Settings, setting


class DedupSettings(Settings):
    """What is compared with what, and what is written."""

    data_path: list[str] = setting(
        ...,
        "Records to go through, in this order: JSON list, JSONL, Parquet, a stage's folder, or a hub dataset id (its "
        "train split, or that of owner/name:split). Read piece by piece, however large.",
    )
    output_dir: str = setting(..., "Folder for kept.jsonl, rejected.jsonl, metrics.json and run.json.")
    overwrite: bool = setting(False, "Replace the results of an earlier run in output_dir, finished or not.")
    resume: bool = setting(
        False, "Go on with a run in output_dir that was stopped: what it decided is not decided again."
    )
    seed_tasks_path: str | None = setting(
        None, "Records that are there first: what is too similar to one of them is dropped ('seeds': those shipped)."
    )

    threshold: float = setting(
        0.7,
        "Drop a record whose instruction's ROUGE-L with an earlier kept one is above this.",
        group="novelty",
        aliases=("similarity_threshold",),
        ge=0,
        le=1,
    )
    similarity_stats: Literal["full", "top", "none"] = setting(
        "none",
        "What kept records tell of their neighbours. full: the ten nearest and the average, as the original; top: the "
        "ten nearest; none: nothing, which is fastest. What is kept is the same.",
        group="novelty",
    )
    tokenizer: Literal["rouge", "unicode"] = setting(
        "rouge",
        "How instructions become words. rouge: the original's, which sees a-z and 0-9 only; unicode: words of every "
        "script.",
        group="novelty",
    )
    decontaminate: list[str] | None = setting(
        None,
        "Evaluation files or hub ids (owner/name, owner/name:split, owner/name:config:split; without a split, test is "
        "read); records that are one of their prompts, contain it or are too near to it are dropped.",
        group="novelty",
    )
    decontaminate_threshold: float = setting(
        0.7,
        "Too near to an evaluation prompt is a ROUGE-L above this; a prompt that is the same or contained always is.",
        group="novelty",
        ge=0,
        le=1,
    )

    num_shards: int = setting(
        1,
        "Ray actors that the kept instructions are split over. 1: none, all in this process.",
        group="resources",
        ge=1,
    )
    num_cpus: int | None = setting(
        None,
        "Threads that compare: in this process, or in each shard. By default one for each core, or one for each shard.",
        group="resources",
        ge=1,
    )
