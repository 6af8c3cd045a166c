from __future__ import annotations

import os
from pathlib import Path

import pytest

from alpaca_ray.generate.store import Prefix, RowStore

ROWS = [{"a": "é\u2028\n\ud800", "n": number, "nested": {"x": [1, 2]}} for number in range(5)]


def filled(folder: Path) -> RowStore:
    store = RowStore(folder)
    for row in ROWS:
        store.append(row)
    return store


def test_rows_come_back_as_they_were_in_any_order(tmp_path: Path) -> None:
    store = filled(tmp_path / "not" / "there" / "yet")
    assert list(tmp_path.iterdir()) == []
    assert [store[4], store[0], store[-1]] == [ROWS[4], ROWS[0], ROWS[4]]
    assert store[0] == ROWS[0], "wherever the last look was, a row is added at the end"
    store.append({"late": True})
    assert (len(store), list(store)[:5], store[5], store[1:3]) == (6, ROWS, {"late": True}, ROWS[1:3])
    with pytest.raises(IndexError):
        store[6]


def test_lines_are_the_file(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.append({"long": "x" * 3_000_000})
    text = b"".join(store.lines()).decode()
    assert text.count("\n") == 6
    assert text.startswith('{"a": "é\u2028\\n\\ud800", "n": 0')
    assert list(RowStore(tmp_path).lines()) == []
    store._file.seek(0, os.SEEK_END)
    store._file.write(b"what a full disk has taken of a row")
    assert b"".join(store.lines()).decode() == text


def test_a_prefix_ends_where_it_ends(tmp_path: Path) -> None:
    store = filled(tmp_path)
    first = Prefix(store, 2)
    assert (len(first), list(first), first[-1], first[:9]) == (2, ROWS[:2], ROWS[1], ROWS[:2])
    with pytest.raises(IndexError):
        first[2]
