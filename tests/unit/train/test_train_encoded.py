"""Encoded samples kept as a file: the same samples, made once, and anew only where something they depend on changed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import ALPACA_LORA, STANFORD
from alpaca_ray.records import read_records
from alpaca_ray.train import encoded
from alpaca_ray.train.encode import encode
from alpaca_ray.train.encoded import Encoded, lengths_of, load_or_encode

RECORDS = read_records("seeds")[:30]
OPTIONS: dict[str, Any] = {"max_length": 120, "train_on_inputs": False, "add_eos": True}


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def test_samples_come_back_as_they_were(tokenizer: Any, tmp_path: Path) -> None:
    kept = load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, **OPTIONS)
    plain = encode(RECORDS, tokenizer, STANFORD, **OPTIONS)
    assert list(kept) == plain
    assert kept[-1] == plain[-1]
    assert kept[3:7] == plain[3:7]
    assert lengths_of(kept) == lengths_of(plain) == [len(sample["input_ids"]) for sample in plain]
    assert list(pickle.loads(pickle.dumps(kept))) == plain
    with pytest.raises(IndexError):
        kept[len(RECORDS)]


def test_a_restart_encodes_nothing(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, **OPTIONS)
    monkeypatch.setattr(encoded, "encode", lambda *_, **__: pytest.fail("encoded again"))
    tokenizer("a call that leaves truncation set", truncation=True, max_length=4)
    assert list(load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, **OPTIONS)) == list(first)


def test_whatever_the_samples_depend_on_makes_another_file(tokenizer: Any) -> None:
    keys = [
        encoded.key(RECORDS, tokenizer, STANFORD, **OPTIONS),
        encoded.key(RECORDS[1:], tokenizer, STANFORD, **OPTIONS),
        encoded.key(RECORDS[::-1], tokenizer, STANFORD, **OPTIONS),
        encoded.key([{**RECORDS[0], "output": "other"}, *RECORDS[1:]], tokenizer, STANFORD, **OPTIONS),
        encoded.key(RECORDS, tokenizer, ALPACA_LORA, **OPTIONS),
        encoded.key(RECORDS, tokenizer, STANFORD, **{**OPTIONS, "max_length": 121}),
        encoded.key(RECORDS, tokenizer, STANFORD, **{**OPTIONS, "train_on_inputs": True}),
    ]
    tokenizer.chat_template = "{{ messages }}"
    keys.append(encoded.key(RECORDS, tokenizer, STANFORD, **OPTIONS))
    tokenizer.add_tokens(["zzz"])
    keys.append(encoded.key(RECORDS, tokenizer, STANFORD, **OPTIONS))
    assert len(set(keys)) == len(keys)


def test_a_file_that_is_not_whole_is_made_anew(tokenizer: Any, tmp_path: Path) -> None:
    load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, **OPTIONS)
    path = tmp_path / encoded.key(RECORDS, tokenizer, STANFORD, **OPTIONS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not whole"):
        Encoded(path)
    plain = encode(RECORDS, tokenizer, STANFORD, **OPTIONS)
    assert list(load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, **OPTIONS)) == plain


def test_data_without_a_label_is_the_same_error_as_before(tokenizer: Any, tmp_path: Path) -> None:
    short = {**OPTIONS, "max_length": 16}
    with pytest.raises(DataError, match="--model_max_length 16"):
        load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, **short)
    kept = load_or_encode(tmp_path, RECORDS, tokenizer, STANFORD, may_be_empty=True, **short)
    assert not kept.any_learnt()
    assert len(kept) == len(RECORDS)


def test_no_records_are_no_samples(tokenizer: Any, tmp_path: Path) -> None:
    kept = load_or_encode(tmp_path, [], tokenizer, STANFORD, may_be_empty=True, **OPTIONS)
    assert list(kept) == []
    assert not kept.any_learnt()


def test_a_label_on_the_first_token_alone_is_nothing_to_learn(tmp_path: Path) -> None:
    encoded.write(tmp_path / "f", [[{"input_ids": [5, 6], "labels": [5, -100]}]])
    assert not Encoded(tmp_path / "f").any_learnt()
    encoded.write(tmp_path / "f", [[{"input_ids": [], "labels": []}], [{"input_ids": [5, 6], "labels": [-100, 6]}]])
    assert Encoded(tmp_path / "f").any_learnt()
