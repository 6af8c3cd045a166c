"""Settings of ``jobs/report.py``."""

from __future__ import annotations

import re
from typing import Self

from pydantic import model_validator

from alpaca_ray.settings.base import Settings, setting
from alpaca_ray.settings.licence import check_licence

_HUB_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


class ReportSettings(Settings):
    """What ``jobs/report.py`` reads and writes."""

    data_path: str | None = setting(
        None,
        "A folder that generation or deduplication wrote, or records: a JSON, JSONL or Parquet file, a hub dataset id, "
        "or 'seeds'.",
        positional=True,
    )
    output_dir: str | None = setting(
        None,
        "Where to write the report. By default the folder itself; for a file or an id, NAME-report in the current "
        "folder. Files of an earlier report are replaced, no others.",
    )
    title: str | None = setting(None, "Title of the page and the card. By default made from the data's name.")
    seed: int = setting(42, "Seed of every sample that the report takes.")
    samples: int = setting(6, "Records shown on the page, drawn at random.", ge=0, le=100)

    tokenizer: str | None = setting(
        None,
        "Model whose tokenizer measures lengths: hub id, folder or 'embedded'; 'words' counts words instead. By "
        "default the embedded model's where it is in the cache already, else words.",
        group="measures",
    )
    max_parsed: int = setting(
        20_000,
        "Instructions parsed for their verb and object; of more, a random sample is taken. 0 leaves that part out.",
        group="measures",
        ge=0,
    )

    license: str = setting(
        "other",
        "Licence of the records, as the hub names it (such as cc-by-nc-4.0). The teacher's terms and the seeds' "
        "licence decide it, so only you can say.",
        group="card",
    )
    teacher: str | None = setting(
        None, "Teacher that wrote the records, for the card. By default what run.json says.", group="card"
    )
    language: str = setting(
        "en", "Language of the records, as a two- or three-letter code, for the card.", group="card"
    )
    push_to_hub: str | None = setting(
        None, "Upload records, card and report to this dataset repository (OWNER/NAME) of the hub.", group="card"
    )
    public: bool = setting(
        False, "Make a repository that push_to_hub creates public. It is private else.", group="card"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.data_path:
            raise ValueError(
                "name what to report on: a folder that generation or deduplication wrote, or a file of records, as in "
                "`python jobs/report.py out`"
            )
        check_licence(self.license)
        if not re.fullmatch(r"[a-z]{2,3}", self.language):
            raise ValueError(f"--language {self.language!r}: must be a two- or three-letter code, such as en or zh")
        if self.public and not self.push_to_hub:
            raise ValueError("--public does nothing without --push_to_hub REPO: give both, or neither")
        if self.push_to_hub and not _HUB_REPO.fullmatch(self.push_to_hub):
            raise ValueError(f"--push_to_hub {self.push_to_hub!r}: must be NAME or OWNER/NAME")
        return self
