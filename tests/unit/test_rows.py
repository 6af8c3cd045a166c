"""Rows of large files, read in pieces: every form, every place where a piece may end, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpaca_ray import rows
from alpaca_ray.errors import DataError
from alpaca_ray.manifest import write_manifest
from alpaca_ray.rows import read_rows

ROWS: list[dict[str, Any]] = [
    {"instruction": 'Füge 中文 zusammen \u2028 "x" \\ \n end', "n": [1.5e-7, True, None, -0.25], "d": {"a": "]},{["}},
    {"instruction": "", "big": 12345678901234567890, "t": "🙂 false"},
    {"instruction": "x" * 200},
]


@pytest.fixture(params=[1, 2, 3, 7, 64, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(rows, "_CHUNK", request.param)
    return int(request.param)


def save(path: Path, text: str) -> str:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return str(path)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_lists(tmp_path: Path, chunk: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
    assert list(read_rows(save(tmp_path / "d.json", f"\ufeff \n{text}\n"))) == ROWS
    assert list(read_rows(save(tmp_path / "d", text))) == ROWS


def test_lines(tmp_path: Path, chunk: int) -> None:
    text = "\n".join(["", *map(json.dumps, ROWS), "", ""])
    for name in ("d.jsonl", "d.json", "d"):
        assert list(read_rows(save(tmp_path / name, text))) == ROWS
    assert list(read_rows(save(tmp_path / "e.jsonl", json.dumps(ROWS[0])))) == ROWS[:1]


def test_empty_lists_and_files(tmp_path: Path) -> None:
    assert list(read_rows(save(tmp_path / "d.json", "[ ]"))) == []
    assert list(read_rows(save(tmp_path / "d.jsonl", "\n"))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', "line 2: not valid JSON: Expecting ':' delimiter"),
        ('[{"a": 1}\n\n {"a": 2}]', "line 3: not valid JSON: Expecting ',' delimiter"),
        ('[{"a": 1},\n]', "line 2: not valid JSON"),
        ('[\n{"a": }\n]', "line 2: not valid JSON: Expecting value"),
        ('[{"a": 1},\n{"a": "x', "line 2: not valid JSON: Unterminated string"),
        ('[{"a": 1}\n', "not valid JSON: Expecting ',' delimiter"),
        ('[{"a": 1}]\n{}', "line 2: not valid JSON: Extra data"),
        ('[{"a": "\n"}]', "not valid JSON: Invalid control character"),
        ("3", "must hold a JSON list of records"),
        ('"x"', "must hold a JSON list of records"),
    ],
)
def test_a_broken_list_names_file_and_line(tmp_path: Path, chunk: int, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_rows(save(tmp_path / "d.json", text)))
    assert "d.json" in str(caught.value)
    assert message in str(caught.value)


def test_a_broken_line_names_file_and_line(tmp_path: Path, chunk: int) -> None:
    path = save(tmp_path / "d.jsonl", '{"a": 1}\n\n{"a": 2}\n{"a": \n')
    found = read_rows(path)
    assert [next(found), next(found)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"d\.jsonl, line 4: not valid JSON"):
        next(found)


def test_an_error_at_the_start_is_found_without_reading_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_CHUNK", 100)
    path = tmp_path / "d.json"
    path.write_bytes(b'[{"a" 1}, ' + b'{"a": 1}, ' * 50 + b"\xff")
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        list(read_rows(str(path)))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl, line 2: not UTF-8"):
        list(read_rows(str(path)))


def test_parquet_and_folders(tmp_path: Path) -> None:
    table = [{"instruction": f"i{number}", "k": number} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "kept.parquet", row_group_size=700)
    assert list(read_rows(str(tmp_path / "kept.parquet"))) == table
    write_manifest(tmp_path, "dedup", settings={}, data_file="kept.parquet")
    assert list(read_rows(str(tmp_path))) == table
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"bad\.parquet: cannot be read as Parquet"):
        list(read_rows(str(tmp_path / "bad.parquet")))


def test_hub_datasets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(name: str, *, streaming: bool) -> Any:
        asked.append((name, streaming))
        return {"train": datasets.Dataset.from_list([{"instruction": "hi"}]).to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_rows("someone/data")) == [{"instruction": "hi"}]
    assert asked == [("someone/data", True)]


def test_missing_files() -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_rows("/nowhere/at/all.json"))
