"""The whole loop on one machine: each stage is the job that a user would run, in a process of its own.

The teacher's process has ended before training begins, and training's before serving: on two cores, two live torch
processes slow each other down several times over.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from alpaca_ray import manifest
from alpaca_ray.console import say, table
from alpaca_ray.errors import AlpacaRayError
from alpaca_ray.prompts import load_template
from alpaca_ray.records import Record, read_records
from alpaca_ray.report.page import LoopReport, render
from alpaca_ray.settings.demo import DemoSettings
from alpaca_ray.settings.serve import ServeArgs
from alpaca_ray.storage import location, resolve_output, write_atomic
from alpaca_ray.train.progress import read_metrics
from alpaca_ray.train.publish import TEMPLATE_FILE

ADAPTER = "alpaca-demo"
_ROOT = Path(__file__).resolve().parent.parent
_NOTE = (
    "One turn of the loop with a teacher of 135 million parameters. These records show that every part works; they say "
    "nothing about the quality that a real teacher and a real base model give."
)
_COLUMN = 46


def run_demo(settings: DemoSettings) -> None:
    """Generate, train and serve with the embedded model; print a table and write ``report.html``.

    Raises:
        AlpacaRayError: a stage failed; its own error stands above.
    """
    started = time.monotonic()
    folder = resolve_output(settings.output_dir)
    records_folder, adapter_folder = folder / "records", folder / "adapters" / ADAPTER

    generate = ["--config", settings.generate_config, "--output_dir", str(records_folder), "--overwrite"]
    generate += ["--num_instructions_to_generate", str(settings.num_instructions_to_generate)]
    _run_stage("1/3 generate", "generate.py", generate)
    train = ["--config", settings.train_config, "--data_path", "seeds", str(records_folder)]
    _run_stage("2/3 train", "train.py", [*train, "--output_dir", str(adapter_folder), "--overwrite"])
    say("\n=== 3/3 serve ===")
    questions = held_out_questions(adapter_folder, [str(records_folder)], settings.num_questions)
    comparisons = _ask_side_by_side(folder / "adapters", questions, settings.max_answer_tokens)

    metrics = json.loads((records_folder / "metrics.json").read_text(encoding="utf-8"))
    outcomes = {"kept": metrics["kept"], **metrics["rejected"]}
    trained = manifest.read_manifest(adapter_folder) or {}
    before, after = trained["validation_loss_before"], trained["validation_loss_after"]
    seconds = time.monotonic() - started
    report = LoopReport(
        title="alpaca_ray: one turn of the loop",
        note=_NOTE,
        cards=[
            (str(metrics["kept"]), f"records kept of {sum(outcomes.values())} entries"),
            (str(metrics["requests"]), "requests to the teacher"),
            (f"{before:.2f} → {after:.2f}", "validation loss, before and after"),
            (f"{seconds / 60:.1f} min", "for all three stages"),
        ],
        metrics=read_metrics(adapter_folder),
        outcomes=outcomes,
        records=read_records(str(records_folder)),
        comparisons=comparisons,
        footer=f"model: embedded (SmolLM2-135M-Instruct), adapter: {ADAPTER}, seed {trained.get('seed')}",
    )
    write_atomic(folder / "report.html", render(report))
    _print_table(outcomes, before, after, comparisons, seconds)
    say(f"adapter: {adapter_folder}")
    say(f"report: {location(folder / 'report.html')}")


def held_out_questions(adapter_folder: Path, sources: list[str], count: int) -> list[Record]:
    """Return the shortest records that training held out, of those that the seeds and ``sources`` hold."""
    held_out = set(json.loads((adapter_folder / "heldout_ids.json").read_text(encoding="utf-8")))
    records = [record for source in ["seeds", *sources] for record in read_records(source)]
    found = [record for record in records if record["id"] in held_out]
    return sorted(found, key=lambda record: len(record["instruction"]) + len(record["input"]))[:count]


def _run_stage(title: str, job: str, arguments: list[str]) -> None:
    say(f"\n=== {title} ===\n$ python jobs/{job} {' '.join(arguments)}")
    done = subprocess.run([sys.executable, str(_ROOT / "jobs" / job), *arguments], cwd=_ROOT)
    if done.returncode:
        raise AlpacaRayError(
            f"the stage {title!r} ended with exit code {done.returncode}; its own message stands above"
        )


def _ask_side_by_side(
    adapters: Path, questions: list[Record], max_tokens: int
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Serve base and adapter in one app and ask both the same prompts, greedily, through the openai package."""
    from openai import OpenAI

    from alpaca_ray import cluster
    from alpaca_ray.serve.local import local_server

    cluster.connect(show_workers=False)
    template = load_template(str(adapters / ADAPTER / TEMPLATE_FILE))  # both get what the adapter was trained with
    comparisons = []
    try:
        with local_server(ServeArgs(base_model="embedded", adapters=str(adapters))) as base_url:
            client = OpenAI(base_url=base_url, api_key="none", timeout=300)
            names = [model.id for model in client.models.list()]
            say(f"serving {', '.join(names)} on {base_url}")
            for record in questions:
                answers = []
                for name in ("embedded", ADAPTER):
                    reply = client.completions.create(
                        model=name, prompt=template.format(record), max_tokens=max_tokens, temperature=0, stop="###"
                    )
                    answers.append((name, reply.choices[0].text.strip()))
                question = "\n".join(filter(None, [record["instruction"], record["input"]]))
                comparisons.append((question, answers))
                say(f"asked: {record['instruction']}")
    finally:
        cluster.shut_down()
    return comparisons


def _print_table(
    outcomes: dict[str, int],
    before: float,
    after: float,
    comparisons: list[tuple[str, list[tuple[str, str]]]],
    seconds: float,
) -> None:
    rejected = sorted(((name, count) for name, count in outcomes.items() if name != "kept"), key=lambda row: -row[1])
    say("\n=== result ===")
    rows = [("records kept", str(outcomes["kept"]))]
    rows += [(f"rejected: {reason}", str(count)) for reason, count in rejected if count]
    rows += [("validation loss before", f"{before:.4f}"), ("validation loss after", f"{after:.4f}")]
    rows += [("minutes", f"{seconds / 60:.1f}")]
    say(table(rows, header=("figure", "value")))
    for question, answers in comparisons:
        say()
        say(textwrap.shorten(question, 2 * _COLUMN))
        say(_side_by_side(answers))
    say()


def _side_by_side(answers: list[tuple[str, str]]) -> str:
    columns = [[f"[{name}]", *_wrap(answer)] for name, answer in answers]
    height = max(map(len, columns))
    rows = [[column[row] if row < len(column) else "" for column in columns] for row in range(height)]
    return "\n".join(" | ".join(cell.ljust(_COLUMN) for cell in row).rstrip() for row in rows)


def _wrap(text: str) -> list[str]:
    return [line for part in text.splitlines() or [""] for line in textwrap.wrap(part, _COLUMN) or [""]]
