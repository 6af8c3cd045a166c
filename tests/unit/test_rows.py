"""Rows of large files, read in pieces: every form, every place where a piece may end, and clear errors."""

from __future__ import annotations

import contextlib
import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpaca_ray import rows
from alpaca_ray.errors import DataError
from alpaca_ray.hub_rows import HubRows, StreamBrokenError
from alpaca_ray.manifest import write_manifest
from alpaca_ray.rows import check_source, locate, read_rows

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


def test_numbers_that_a_chunk_cuts_in_two(tmp_path: Path, chunk: int) -> None:
    numbers = [123456, -1.25e-7, 2, [34567], 89]
    assert list(read_rows(save(tmp_path / "d.json", json.dumps(numbers)))) == numbers


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
    path.write_bytes(b'{"a": 1}\n\xc3')  # cut off within a character
    with pytest.raises(DataError, match=r"d\.jsonl, line 2: not UTF-8"):
        list(read_rows(str(path)))


def test_one_object_over_several_lines_is_no_line_of_its_own(tmp_path: Path) -> None:
    for name, words in (("d.json", "must hold a JSON list of records, not one dict"), ("d.jsonl", "line 1: not valid")):
        with pytest.raises(DataError, match=words):
            list(read_rows(save(tmp_path / name, '{\n"a": 1\n}\n')))


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


@pytest.mark.parametrize(
    ("source", "evaluation", "loaded", "split"),
    [
        ("a/b", False, ("a/b",), "train"),
        ("a/b", True, ("a/b",), "test"),
        ("a/b:validation", False, ("a/b",), "validation"),
        ("a/b:easy:validation", True, ("a/b", "easy"), "validation"),
        ("a/odd", False, ("a/odd",), "extra"),
        ("a/odd", True, ("a/odd",), "validation"),
        ("a/odder", True, ("a/odder",), "first"),
    ],
)
def test_splits_of_hub_datasets(
    monkeypatch: pytest.MonkeyPatch, source: str, evaluation: bool, loaded: tuple[str, ...], split: str
) -> None:
    import datasets

    there = {"a/b": ("test", "validation", "train"), "a/odd": ("extra", "validation"), "a/odder": ("first", "last")}
    asked = []

    def load(*given: str, streaming: bool) -> Any:
        asked.append(given)
        return {name: [{"split": name}] for name in there[given[0]]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert locate(source) == (source, True)
    rows = HubRows(source, evaluation=evaluation)
    assert (rows.split, list(rows), list(rows)) == (split, [{"split": split}], [{"split": split}])
    assert asked == [loaded]
    with pytest.raises(DataError, match=r"a/b:none: the dataset has no split 'none', but test, validation, train"):
        HubRows("a/b:none")


def test_a_hub_dataset_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def broken() -> Iterator[dict[str, str]]:
        yield {"instruction": "a"}
        yield {"instruction": "b"}
        raise ConnectionError("reset by peer")

    class Rows:
        def __iter__(self) -> Iterator[dict[str, str]]:
            return broken()

    def load(name: str, *, streaming: bool) -> Any:
        if name == "no/where":
            raise FileNotFoundError("404")
        return {"train": Rows()}

    monkeypatch.setattr(datasets, "load_dataset", load)
    check_source("some/where")
    with pytest.raises(StreamBrokenError, match="some/where: cannot be read on after 2 records: reset by peer"):
        list(read_rows("some/where"))
    with pytest.raises(DataError, match=r"no/where: no such file, and not readable as a hub dataset .*: 404"):
        check_source("no/where")


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_what_goes_beyond_pythons_limits_names_the_line(tmp_path: Path, chunk: int, name: str) -> None:
    before, after = ('[{"a": 1},\n', "]") if name == "d.json" else ('{"a": 1}\n', "")
    deep = save(tmp_path / name, before + '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}" + after)
    with pytest.raises(DataError, match=rf"{name}, line 2: cannot be read: lists and objects .* nested too deeply"):
        list(read_rows(deep))
    long = save(tmp_path / name, before + '{"a": ' + "9" * 5000 + "}" + after)
    with pytest.raises(DataError, match=rf"{name}, line 2: cannot be read: a number of more than 4300 digits"):
        list(read_rows(long))


def test_a_file_that_fails_in_the_middle_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(rows, "_CHUNK", 8)
    monkeypatch.setattr(rows, "open_input", lambda name: contextlib.nullcontext(Failing(b'{"a": 1}\n{"a": 2}\n')))
    with pytest.raises(StreamBrokenError, match=r"d\.jsonl: cannot be read on: Input/output error"):
        list(read_rows(save(tmp_path / "d.jsonl", "")))


def test_missing_files() -> None:
    for name in ("/nowhere/at/all.json", "./nowhere", "../nowhere", "nowhere/all.jsonl"):  # of no file, and no hub id
        with pytest.raises(DataError, match="no such file or folder"):
            locate(name)
