"""``jobs/report.py``: from a folder or a file of records to a page, its figures and a dataset card."""

from __future__ import annotations

import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from alpaca_ray import __version__
from alpaca_ray.console import say
from alpaca_ray.errors import OutputError, SettingsError
from alpaca_ray.records import SHIPPED_SEEDS
from alpaca_ray.report import hub
from alpaca_ray.report.account import account_of
from alpaca_ray.report.card import render_card
from alpaca_ray.report.data_page import DataReport, all_charts, render_data_page, sample_records
from alpaca_ray.report.describe import card_of, headline
from alpaca_ray.report.figures import to_png
from alpaca_ray.report.measure import choose_ruler, fields_of, measure
from alpaca_ray.report.outputs import Content, Outputs
from alpaca_ray.report.rows import data_rows, schema_of
from alpaca_ray.report.source import Source, read_source, source_file
from alpaca_ray.report.verbs import count_verbs
from alpaca_ray.settings.report import ReportSettings
from alpaca_ray.storage import location, make_folder, resolve_output

PAGE = "report.html"
CARD = "README.md"
CARD_BESIDE = "DATASET_CARD.md"
FIGURES = "figures"
DATA = "data/train.jsonl"


def write_report(settings: ReportSettings) -> Path:
    """Write the report that ``settings`` ask for and return its folder. The page is written last.

    Raises:
        DataError, SettingsError, ModelError, OutputError: as a line that says what to do; nothing is written then,
            except that an upload which fails leaves the finished files.
    """
    assert settings.data_path is not None  # the settings see to it
    output = resolve_output(settings.output_dir or _default_output(settings.data_path))
    _check_packages(settings)
    outputs, file = Outputs(output), source_file(settings.data_path)
    card = CARD if outputs.is_ours(CARD) or not (output / CARD).exists() else CARD_BESIDE
    outputs.check((DATA, card, PAGE), file)
    repo = hub.check_push(settings.push_to_hub, public=settings.public) if settings.push_to_hub else None
    ruler = choose_ruler(settings.tokenizer)
    source = read_source(settings.data_path)
    make_folder(output)

    say(f"report on {len(source.records):,} records of {source.name}")
    if source.unfinished:
        say("warning: the run there has not finished: these are the records that it has so far")
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
    contents, files = _contents(settings, source, report, card)
    try:
        outputs.publish(contents, file)  # the page last: it says that everything beside it is there
    except OSError as error:
        raise OutputError(f"--output_dir {output}: cannot be written: {error.strerror or error}") from error
    if card != CARD:
        say(f"{CARD} is not as a report wrote it and stays: the card is {card}")
    for name in contents:
        say(f"wrote {output / name}")
    if repo:
        address = hub.push(output, repo, files, public=settings.public)
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


def _contents(
    settings: ReportSettings, source: Source, report: DataReport, card: str
) -> tuple[dict[str, Content], dict[str, str]]:
    """Return the files' contents, the page last, and name in a repository to name in the folder."""
    schema = schema_of(source.records)
    images = {f"{FIGURES}/{chart.name}.png": (chart.title, to_png(chart.draw)) for chart in all_charts(report)}
    figures = [(title, name) for name, (title, _) in images.items()]
    texts = {
        card: render_card(card_of(settings, source, report, schema, DATA, figures)),
        PAGE: render_data_page(report),
    }
    contents: dict[str, Content] = {DATA: partial(data_rows, source.records, schema)}
    contents |= {name: partial(iter, [image]) for name, (_, image) in images.items()}
    # Half a surrogate pair in somebody's title is none of UTF-8's, and no reason to lose a report.
    contents |= {name: partial(iter, [text.encode("utf-8", "replace")]) for name, text in texts.items()}
    return contents, {CARD if name == card else name: name for name in contents}


def _default_output(data: str) -> str:
    path = Path(data).expanduser()
    if path.is_dir() and data != SHIPPED_SEEDS:
        return data
    return f"{Path(data.rstrip('/')).stem or 'data'}-report"
