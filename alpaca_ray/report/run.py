"""``jobs/report.py``: from a folder or a file of records to a page, its figures and a dataset card."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alpaca_ray import __version__
from alpaca_ray.console import say
from alpaca_ray.errors import OutputError, SettingsError
from alpaca_ray.records import SHIPPED_SEEDS, Record
from alpaca_ray.report import hub
from alpaca_ray.report.account import account_of
from alpaca_ray.report.card import MARK, render_card
from alpaca_ray.report.data_page import DataReport, all_charts, render_data_page, sample_records
from alpaca_ray.report.describe import card_of, headline
from alpaca_ray.report.figures import to_png
from alpaca_ray.report.measure import choose_ruler, fields_of, is_chat, measure
from alpaca_ray.report.source import Source, read_source
from alpaca_ray.report.verbs import count_verbs
from alpaca_ray.settings.report import ReportSettings
from alpaca_ray.storage import location, make_folder, resolve_output, write_atomic

PAGE = "report.html"
CARD = "README.md"
CARD_BESIDE = "DATASET_CARD.md"
FIGURES = "figures"
DATA = "data/train.jsonl"
_PARTS = ("id", "instruction", "input", "output")


def write_report(settings: ReportSettings) -> Path:
    """Write the report that ``settings`` ask for and return its folder. The page is written last.

    Raises:
        DataError, SettingsError, ModelError, OutputError: as a line that says what to do; nothing is written then,
            except that an upload which fails leaves the finished files.
    """
    assert settings.data_path is not None  # the settings see to it
    output = resolve_output(settings.output_dir or _default_output(settings.data_path))
    _check_packages(settings)
    if settings.push_to_hub:
        hub.check_push(settings.push_to_hub, public=settings.public)
    ruler = choose_ruler(settings.tokenizer)
    source = read_source(settings.data_path)
    make_folder(output)

    say(f"report on {len(source.records):,} records of {source.name}")
    measures = measure(source.records, ruler)
    say(f"measured in {ruler.described}")
    verbs = None
    if settings.max_parsed:
        asked = [fields_of(record)[0] for record in source.records]
        verbs = count_verbs(asked, limit=settings.max_parsed, seed=settings.seed)
        say(f"parsed {verbs.parsed:,} instructions: {len(verbs.verbs):,} root verbs")
    title, note = headline(settings, source)
    report = DataReport(
        title,
        note,
        measures,
        verbs,
        account_of(source),
        sample_records(source.records, settings.samples, settings.seed),
        f"Made by alpaca_ray {__version__} on {time.strftime('%Y-%m-%d')}, from {source.short_name}.",
    )
    try:
        written = _write(settings, source, report, output)
        write_atomic(output / PAGE, render_data_page(report))  # last: a page says that everything beside it is there
    except OSError as error:
        raise OutputError(f"--output_dir {output}: cannot be written: {error.strerror or error}") from error
    for name in written.values():
        say(f"wrote {output / name}")
    if settings.push_to_hub:
        address = hub.push(output, settings.push_to_hub, {**written, PAGE: PAGE}, public=settings.public)
        say(f"uploaded: {address}")
    say(f"page: {location(output / PAGE)}")
    return output


def _check_packages(settings: ReportSettings) -> None:
    needed = {"matplotlib": True, "HanTa": settings.max_parsed > 0, "huggingface_hub": settings.push_to_hub is not None}
    missing = [name for name, wanted in needed.items() if wanted and find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the report needs {' and '.join(missing)}: pip install 'alpaca-ray[report]'"
            + (" (or give --max_parsed 0 to leave verbs and objects out)" if missing == ["HanTa"] else "")
        )


def _write(settings: ReportSettings, source: Source, report: DataReport, output: Path) -> dict[str, str]:
    """Write data, figures and card; return name in a repository to name in the folder."""
    (output / FIGURES).mkdir(exist_ok=True)
    (output / DATA).parent.mkdir(exist_ok=True)
    write_atomic(output / DATA, _rows(source.records))
    figures = []
    for chart in all_charts(report):
        name = f"{FIGURES}/{chart.name}.png"
        write_atomic(output / name, to_png(chart.draw))
        figures.append((chart.title, name))
    for old in (output / FIGURES).glob("*.png"):  # of an earlier report on other data
        if f"{FIGURES}/{old.name}" not in {name for _, name in figures}:
            old.unlink()
    card = CARD
    if (output / CARD).is_file() and MARK not in (output / CARD).read_text(encoding="utf-8", errors="replace"):
        card = CARD_BESIDE  # a README of somebody's own stays
    write_atomic(output / card, render_card(card_of(settings, source, report, DATA, figures)))
    return {DATA: DATA, **{name: name for _, name in figures}, CARD: card}


def _rows(records: list[Record]) -> Iterator[bytes]:
    """Yield the records as the hub's viewer can read them: one schema, nothing but their content and id."""
    chat = all(map(is_chat, records))
    for record in records:
        row: dict[str, Any] = dict(zip(_PARTS, (str(record["id"]), *fields_of(record)), strict=True))
        if chat:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in record["messages"]]
            row = {"id": row["id"], "messages": turns}
        yield (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _default_output(data: str) -> str:
    path = Path(data).expanduser()
    if path.is_dir() and data != SHIPPED_SEEDS:
        return data
    return f"{Path(data.rstrip('/')).stem or 'data'}-report"
