"""The whole report: what is written, in which order, and what is refused before anything is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError, OutputError, SettingsError
from alpaca_ray.report import outputs, run
from alpaca_ray.report.run import write_report
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.report import ReportSettings
from alpaca_ray.storage import write_atomic

ODD: list[dict[str, Any]] = [
    {"instruction": "用中文写一首关于春天的诗。", "input": "", "output": "春风又绿江南岸 $x^2$"},
    {"instruction": "Write a <script>alert(1)</script> poem {{ title }}", "input": "a|b", "output": "<b>bold</b>"},
    {"instruction": "Explain " + "verylong" * 300, "output": "y " * 30_000},
    {"instruction": "\ud83d Name a river.", "output": ""},
]


def settings(*arguments: object) -> ReportSettings:
    return parse_settings(ReportSettings, [*map(str, arguments), "--tokenizer", "words"], description="")


def write_stage(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "regen.json").write_text(json.dumps(records))
    (folder / "metrics.json").write_text(
        json.dumps(
            {"kept": len(records), "rejected": {"too_short": 2}, "errors": {"<timeout>": 1}, "cost": {"total": 3}}
        )
    )
    manifest = {"stage": "generate", "data_file": "regen.json", "inputs": [{"name": "/home/me/secret/my_seeds.jsonl"}]}
    (folder / "run.json").write_text(json.dumps({**manifest, "teacher": {"model_name": "some-teacher"}}))
    return folder


def test_a_folder_gets_page_figures_data_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_stage(tmp_path / "out", ODD)
    assert write_report(settings(folder)) == folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "4 instruction records of out" in page
    assert "some-teacher" in page
    assert "$3.00" in page
    assert "66.7\u00a0%" in page  # kept 4 of 6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "my_seeds.jsonl" in card
    assert "| too_short | 2 |" in card
    named = re.findall(r"!\[[^]]*]\(([^)]*)\)", card)
    assert sorted(named) == sorted(f"figures/{path.name}" for path in (folder / "figures").iterdir())
    assert {"figures/rejected.png", "figures/failures.png", "figures/coverage.png", "figures/verbs.png"} <= set(named)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in named)
    rows = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [["id", "instruction", "input", "output"]] * 4
    assert rows[0]["output"] == ODD[0]["output"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"page: {folder / 'report.html'} on node ")


def test_neither_page_nor_card_names_a_folder_of_this_machine(tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "out", ODD)
    write_report(settings(folder))
    for name in ("report.html", "README.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert "secret" not in text


def test_the_page_loads_nothing_and_escapes_everything(tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "out", ODD)
    write_report(settings(folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; poem {{ title }}" in page
    assert "&lt;timeout&gt;" in page
    assert "用中文写一首关于春天的诗" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(page) < 500_000  # long texts are cut


def test_one_record_of_one_file_and_no_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.jsonl").write_text('{"instruction": "Name a river.", "output": "Rhine"}\n')
    output = write_report(settings("one.jsonl", "--max_parsed", 0, "--samples", 0))
    assert output == tmp_path / "one-report"
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "1 instruction record of one.jsonl" in page
    assert "What the instructions ask for" not in page
    assert not (output / "figures" / "verbs.png").exists()


def test_a_chat_stays_a_chat(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "Rhine"}]
    (tmp_path / "chat.json").write_text(json.dumps([{"id": 7, "messages": messages}]))
    output = write_report(settings(tmp_path / "chat.json", "--output_dir", tmp_path / "r"))
    assert json.loads((output / "data" / "train.jsonl").read_text()) == {"id": "7", "messages": messages}
    assert "a list of turns" in (output / "README.md").read_text()


def test_chats_among_plain_records_lose_no_turn_and_load_as_one_table(tmp_path: Path) -> None:
    from datasets import load_dataset

    turns = [{"role": role, "content": f"turn {n}"} for n, role in enumerate(["system", *["user", "assistant"] * 3])]
    records = [
        {"id": "a", "instruction": "Add.", "input": "1 2", "output": "3"},
        {"id": "b", "messages": turns},
        {"id": "c", "instruction": "Say nothing.", "output": ""},
    ]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    output = write_report(settings(tmp_path / "mix.json", "--output_dir", tmp_path / "r", "--max_parsed", 0))
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))["train"].to_list()
    asked = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert loaded == [
        {"id": "a", "messages": asked, "instruction": "Add.", "input": "1 2", "output": "3"},
        {"id": "b", "messages": turns, "instruction": "", "input": "", "output": ""},
        {
            "id": "c",
            "messages": [{"role": "user", "content": "Say nothing."}],
            "instruction": "Say nothing.",
            "input": "",
            "output": "",
        },
    ]
    card = (output / "README.md").read_text()
    assert "Chats and plain records stand together here." in card
    assert "| chats | 1 |" in card


def test_chats_that_have_fields_too_keep_both(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "Rhine"}]
    records = [{"id": "a", "messages": turns}, {"id": "b", "messages": turns, "instruction": "Name it.", "output": "R"}]
    (tmp_path / "mix.json").write_text(json.dumps(records))
    output = write_report(settings(tmp_path / "mix.json", "--output_dir", tmp_path / "r", "--max_parsed", 0))
    rows = [json.loads(line) for line in (output / "data" / "train.jsonl").read_text().splitlines()]
    assert rows == [
        {"id": "a", "messages": turns, "instruction": "", "input": "", "output": ""},
        {"id": "b", "messages": turns, "instruction": "Name it.", "input": "", "output": "R"},
    ]


def test_the_page_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_stage(tmp_path / "out", ODD)
    written: list[str] = []

    def full(path: Path, content: Any) -> None:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        written.append(path.name)
        write_atomic(path, content)

    monkeypatch.setattr(outputs, "write_atomic", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        write_report(settings(folder))
    assert written[:2] == ["report_files.json", "train.jsonl"]
    assert not (folder / "report.html").exists()
    monkeypatch.undo()
    write_report(settings(folder))  # what the broken report left is known to be ours
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name what to report on"),
        (["x.json", "--license", "My Licence"], "--license 'My Licence': must be"),
        (["x.json", "--language", "English"], "--language 'English': must be"),
        (["x.json", "--public"], "--public does nothing without --push_to_hub"),
        (["x.json", "--push_to_hub", "a/b/c"], "--push_to_hub 'a/b/c': must be"),
        (["x.json", "--max_parsed", "-1"], "--max_parsed"),
        (["x.json", "y.json"], "unexpected argument 'y.json'"),
    ],
)
def test_wrong_flags(arguments: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(*arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "HanTa" else object())
    with pytest.raises(
        SettingsError, match=r"needs HanTa: pip install 'alpaca-ray\[report\]' \(or give --max_parsed 0"
    ):
        write_report(settings("missing.json", "--output_dir", tmp_path / "r"))
    with pytest.raises(DataError):
        write_report(settings("missing.json", "--output_dir", tmp_path / "r", "--max_parsed", 0))


def test_bad_input_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text("[]")
    for name in ("empty.json", "missing.json"):
        with pytest.raises(DataError, match=name):
            write_report(settings(name))
    with pytest.raises(OutputError, match="not a folder"):
        write_report(settings("seeds", "--output_dir", tmp_path / "empty.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.json"]
