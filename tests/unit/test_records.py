"""Reading records: every form that is accepted, and one clear line for each that is not."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpaca_ray import rows
from alpaca_ray.errors import DataError
from alpaca_ray.manifest import write_manifest
from alpaca_ray.records import (
    digest,
    first_user_message,
    json_pieces,
    json_text,
    read_records,
    read_seed_tasks,
    with_ids,
    write_json,
    write_jsonl,
)

RECORDS = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue.", "source": "theirs"},
    {"instruction": "Füge zusammen.", "input": "a\u2028b", "output": "ab", "source": "mine"},
]


def save(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_forms_read_alike(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    else:
        path.write_text(write_json(RECORDS) if suffix == ".json" else write_jsonl(RECORDS), encoding="utf-8")
    read = read_records(str(path))
    assert [{key: record[key] for key in ("instruction", "input", "output")} for record in read] == [
        {key: record[key] for key in ("instruction", "input", "output")} for record in RECORDS
    ]
    assert read[1]["source"] == "mine"
    assert read[0]["id"] == f"{digest(RECORDS[0])}-0"


def test_missing_input_becomes_empty_and_given_ids_stay(tmp_path: Path) -> None:
    path = save(tmp_path / "d.json", json.dumps([{"id": 7, "instruction": "i", "output": "o", "input": None}]))
    assert read_records(path) == [{"id": 7, "instruction": "i", "input": "", "output": "o"}]


def test_equal_records_get_different_ids() -> None:
    ids = [record["id"] for record in with_ids([RECORDS[0], RECORDS[0]])]
    assert ids == [f"{digest(RECORDS[0])}-0", f"{digest(RECORDS[0])}-1"]


def test_the_digest_depends_on_content_only() -> None:
    assert digest(RECORDS[0]) == digest({**RECORDS[0], "similarity": 0.2})
    assert digest(RECORDS[0]) == digest({"instruction": "Name a colour.", "output": "Blue."})
    assert digest(RECORDS[0]) != digest({**RECORDS[0], "output": "Red."})
    first, second = {"role": "user", "content": "hi"}, {"content": "hi", "role": "user"}
    assert digest({"messages": [first]}) == digest({"messages": [second]})


def test_instances_of_seed_tasks(tmp_path: Path) -> None:
    instances = [{"input": "", "output": "Blue."}, {"input": "a dark one", "output": "Black."}]
    path = save(tmp_path / "s.jsonl", json.dumps({"id": "s", "instruction": "Name a colour.", "instances": instances}))
    assert [(task["id"], task["input"], task["output"]) for task in read_records(path)] == [
        ("s", "", "Blue."),
        ("s-1", "a dark one", "Black."),
    ]
    assert [task["output"] for task in read_seed_tasks(path)] == ["Blue."]


def test_values_of_parquet(tmp_path: Path) -> None:
    assert digest({"instruction": "i", "output": datetime.date(2020, 1, 2)}) == digest(
        {"instruction": "i", "output": "2020-01-02"}
    )
    with pytest.raises(DataError, match=r"x: record 3: cannot be written as JSON: a value of type bytes"):
        digest({"instruction": "i", "output": b"x"}, "x: record 3")
    chat = [{"role": "user", "content": "hi", "image": None}]
    table = [{"messages": chat}, {"messages": [{**chat[0], "image": b"x"}]}]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: record 1: cannot be written as JSON"):
        read_records(str(tmp_path / "c.parquet"), need_output=False)
    assert json_text({"d": datetime.date(2020, 1, 2), "t": datetime.datetime(2020, 1, 2, 3)}) == (
        '{"d": "2020-01-02", "t": "2020-01-02T03:00:00"}'
    )


def test_halves_of_characters_can_be_read_back(tmp_path: Path) -> None:
    records = [
        {"instruction": "a \ud83d", "input": "\udfff\ud800\ue000", "output": "😀 \ud83d", "\udc00": {"x": "\ud83d"}}
    ]
    for text in (write_json(records), b"".join(json_pieces(records)).decode(), write_jsonl(records)):
        path = tmp_path / "d.json"
        path.write_bytes(text.encode())  # valid UTF-8
        assert json.loads(path.read_text(encoding="utf-8")) in (records, records[0])
    assert "😀" in text
    assert json_text("\ud83d") == '"\\ud83d"'


def test_the_first_user_message() -> None:
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user"},
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "x"},
    ]
    assert first_user_message(chat) == "hi"
    assert [first_user_message(other) for other in (None, [], "user", chat[:2], ["user"])] == [None] * 5


def test_chat_records(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    assert read_records(save(tmp_path / "c.jsonl", json.dumps(chat)))[0]["messages"] == chat["messages"]
    with pytest.raises(DataError, match=r"c\.jsonl, line 1: message 1 needs 'role' and 'content'"):
        read_records(save(tmp_path / "c.jsonl", json.dumps({"messages": [chat["messages"][0], {"role": "user"}]})))


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("user", "bot"), "message 1 has the role 'bot'; known are system, developer, user, assistant"),
        (("system", "user"), "the chat has no message of the role 'assistant'"),
        (("assistant",), "the chat has no message of the role 'user' before the assistant's first"),
        (("system", "assistant", "user"), "the chat has no message of the role 'user' before"),
    ],
)
def test_chats_that_teach_nothing(tmp_path: Path, roles: tuple[str, ...], message: str) -> None:
    good = json.dumps({"messages": turns("system", "user", "assistant", "user")})
    path = save(tmp_path / "c.jsonl", good + "\n\n" + json.dumps({"messages": turns(*roles)}))
    with pytest.raises(DataError, match=rf"c\.jsonl, line 3: {message}"):
        read_records(path)
    assert len(read_records(path, need_output=False)) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '\n\n{"instruction": "x", "output": "y"}\n \n{"output": "z"}\n', r"a\.jsonl, line 5: has no 'inst"),
        ("a.json", '{"instruction": "x", "output": "y"}\n{"output": "z"}\n', r"a\.json, line 2: has no 'instruction'"),
        (
            "a.csv",
            "instruction,output\nx,y\n",
            r"a\.csv, line 1: not valid JSON.*\(records are read from a JSON list, JS",
        ),
        (
            "a.json",
            '[{"conversations": [{"from": "human"}]}]',
            r"record 0: .*\(ShareGPT's form\) is not read: .*'messages'",
        ),
        ("a.json", '[{"prompt": "x", "completion": "y"}]', r"has no 'instruction' .*: name its 'prompt' so"),
    ],
)
def test_wrong_records_are_found_again(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_records(save(tmp_path / name, text))


def test_lines_are_counted_over_the_pieces_in_which_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_CHUNK", 7)
    path = save(tmp_path / "d.jsonl", '\n\n{"a": 1}\n\n{"a": 22222222}\n{"a": 3}')
    assert list(rows.numbered_rows(path)) == [(3, {"a": 1}), (5, {"a": 22222222}), (6, {"a": 3})]
    path = save(tmp_path / "d.json", '\n{"a": 1}\n\n{"a": 2}')
    assert list(rows.numbered_rows(path)) == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_stage_folder_names_its_file(tmp_path: Path) -> None:
    save(tmp_path / "kept.jsonl", write_jsonl(RECORDS[:1]))
    save(tmp_path / "other.jsonl", write_jsonl(RECORDS[1:]))
    assert read_records(str(tmp_path))[0]["output"] == "Blue."  # without run.json: known by its name
    write_manifest(tmp_path, "dedup", settings={}, data_file="other.jsonl")
    assert read_records(str(tmp_path))[0]["output"] == "ab"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"instruction": "x",\n "output": }]', r"a\.json, line 2: not valid JSON"),
        ("a.jsonl", '{"instruction": "x", "output": "y"}\n{"instr', r"a\.jsonl, line 2: not valid JSON"),
        ("a.json", '[{"instruction": "x", "output": "y"}, {"input": "z"}]', r"a\.json: record 1: has no 'instruction'"),
        ("a.json", '[{"instruction": "  ", "output": "y"}]', r"record 0: has no 'instruction'"),
        ("a.json", '[{"instruction": "x"}]', r"record 0: has no 'output'"),
        ("a.json", '[{"instruction": "x", "output": 3}]', r"record 0: 'output' must be a text, not int"),
        ("a.json", '["x"]', r"record 0: must be an object"),
        ("a.json", "{}", r"must hold a JSON list"),
        ("a.json", "[]", r"holds no records"),
        ("a.jsonl", "", r"holds no records"),
        ("a.parquet", "no", r"cannot be read as Parquet"),
    ],
)
def test_bad_content(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_records(save(tmp_path / name, text))
    assert str(tmp_path / name) in str(raised.value)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"instruction": "\xff"}]')
    with pytest.raises(DataError, match="not UTF-8"):
        read_records(str(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["nowhere.json", "./nobody/nothing", "a/b/c"])
def test_missing(name: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_records(name)


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        read_records(str(tmp_path))


def test_pieces_of_json_are_the_whole() -> None:
    records: list[dict[str, Any]] = [
        {"instruction": 'say "é"\n', "input": "", "similar": {"a b": 0.1, "c": 1e-17}, "n": None, "list": [1, [], {}]},
        {"empty": {}, "nested": {"x": {"y": [True, {"z": []}]}}},
        {},
    ]
    for some in ([], records[:1], records):
        assert b"".join(json_pieces(some)).decode() == write_json(some)
