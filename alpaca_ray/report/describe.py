"""In words: what a set of records is, where it came from, and under which filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca_ray.records import SHIPPED_SEEDS
from alpaca_ray.report.card import Card, facts_table
from alpaca_ray.report.data_page import DataReport
from alpaca_ray.report.rows import Schema
from alpaca_ray.report.source import Source
from alpaca_ray.rows import SUFFIXES
from alpaca_ray.settings.report import ReportSettings

_SHIPPED = "the seed tasks that alpaca_ray ships"
_FILTERS = (
    "stanford_compat",
    "parser",
    "min_words",
    "max_words",
    "word_count",
    "blacklist_sense",
    "drop_write_a_program",
    "drop_punctuation_start",
    "drop_non_ascii_start",
    "drop_empty_output",
    "similarity_threshold",
    "threshold",
    "tokenizer",
    "decontaminate",
)
_PROMPT = ("strategy", "machine_examples", "num_prompt_instructions", "num_tasks_per_prompt", "max_example_words")
_SAMPLING = ("temperature", "top_p", "max_tokens")


def headline(settings: ReportSettings, source: Source) -> tuple[str, str]:
    """Return the title and the sentence below it."""
    count = f"{len(source.records):,} instruction record{'s' if len(source.records) != 1 else ''}"
    name = "the shipped seed tasks" if source.name == SHIPPED_SEEDS else source.short_name
    title = settings.title or f"{count} of {name}"
    teacher = teacher_of(settings, source)
    if source.stage == "generate":
        note = f"Generated{f' with {teacher}' if teacher else ''} from {_inputs(source) or 'seed tasks'}."
    elif source.stage == "dedup":
        note = f"What deduplication kept of {_inputs(source) or 'the input'}."
    else:
        note = f"Read from {source.short_name}{f', written by {teacher}' if teacher else ''}."
    if source.unfinished or source.manifest.get("complete") is False:
        note += " The run in this folder is not finished: the figures are those of now."
    elif finished := source.manifest.get("finished_at"):
        note += f" The run finished on {str(finished)[:10]}."
    return title, note


def teacher_of(settings: ReportSettings, source: Source) -> str | None:
    """Return the teacher's name, as the user or ``run.json`` says it."""
    if settings.teacher:
        return settings.teacher
    named = source.first("teacher.model_name", "settings.model_name")
    return "the embedded model (SmolLM2-135M-Instruct)" if named == "embedded" else named and str(named)


def card_of(
    settings: ReportSettings,
    source: Source,
    report: DataReport,
    schema: Schema,
    data_file: str,
    figures: Sequence[tuple[str, str]],
) -> Card:
    """Return the dataset card of a report whose records are in ``data_file``, in a schema."""
    measures, account = report.measures, report.account
    header = source.first("settings.prompt_header")
    facts: dict[str, Any] = {
        "stage": source.stage,
        "teacher": teacher_of(settings, source),
        "API": source.first("teacher.api"),
        "seeds" if source.stage != "dedup" else "input": _inputs(source),
        "prompt header": header and Path(str(header)).name,
        "prompt template": source.first("prompt_template"),
        **{name: source.first(f"settings.{name}") for name in (*_PROMPT, *_SAMPLING)},
        "seed": source.first("seed", "settings.seed"),
        "records": f"{measures.records:,}",
        "chats": f"{measures.chats:,}" if schema == "mixed" else None,
        "with an input": f"{measures.with_input:,}",
        "without an output": f"{measures.without_output:,}" if measures.without_output else None,
        "exact repeats": f"{measures.repeated:,}" if measures.repeated else None,
        "run": source.first("run_id"),
        "finished": source.first("finished_at"),
        "made with": _made_with(source),
    }
    filters = {name: _plain(source.first(f"settings.{name}")) for name in _FILTERS}
    return Card(
        title=report.title,
        license=settings.license,
        language=settings.language,
        synthetic=source.stage == "generate" or teacher_of(settings, source) is not None,
        records=measures.records,
        schema=schema,
        data_file=data_file,
        summary=report.note,
        facts=facts_table(facts) + account.rows(),
        counts=account.outcomes,
        settings=facts_table(filters),
        figures=figures,
    )


def _plain(value: Any) -> Any:
    """Show a list of files by their names, a hub id whole."""
    if not isinstance(value, list):
        return value
    return ", ".join(_name(str(item)) for item in value)


def _name(item: str) -> str:
    hub_id = item.count("/") == 1 and item[0] not in "./~" and not item.endswith(SUFFIXES)
    return item if hub_id else Path(item).name


def _made_with(source: Source) -> str | None:
    version, revision = source.first("versions.alpaca_ray"), source.first("revision")
    return f"alpaca_ray {version}{f' ({revision})' if revision else ''}" if version else None


def _inputs(source: Source) -> str | None:
    """Return the names of what a run read: never a path, which says more about a machine than about the data."""
    given = source.first("settings.data_path" if source.stage == "dedup" else "settings.seed_tasks_path")
    if given is None:
        entries = source.first("inputs") or []
        given = [entry["name"] for entry in entries if entry.get("name")]
    names = [str(name) for name in (given if isinstance(given, list) else [given])]
    shown = [_SHIPPED if name == SHIPPED_SEEDS else _name(name) for name in names if name]
    return ", ".join(shown) or None
