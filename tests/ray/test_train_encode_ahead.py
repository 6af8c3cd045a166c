"""Large data encoded by Ray Data before the workers start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import encode_ahead, encoded
from alpaca_ray.train.encode import encode
from alpaca_ray.train.tokenizer import build_tokenizer

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_give_the_same_samples_in_order_and_the_workers_find_them(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_records("seeds")[:45]
    settings = parse_settings(TrainSettings, ["--model", str(tiny_llama)], description="test")
    options = encode_ahead.encoding_options(settings)
    tokenizer = build_tokenizer(settings, str(tiny_llama))
    assert not encode_ahead.encode_ahead(tmp_path, records, settings, STANFORD, str(tiny_llama))
    assert not (tmp_path / encoded.FOLDER).exists()

    monkeypatch.setattr(encode_ahead, "LARGE", 40)
    monkeypatch.setattr(encode_ahead, "_CHUNK", 10)
    assert encode_ahead.encode_ahead(tmp_path, records, settings, STANFORD, str(tiny_llama))

    def fail(*_: Any, **__: Any) -> Any:
        pytest.fail("encoded again")

    monkeypatch.setattr(encoded, "encode", fail)
    found = encoded.load_or_encode(tmp_path / encoded.FOLDER, records, tokenizer, STANFORD, **options)
    assert list(found) == encode(records, tokenizer, STANFORD, **options)

    chat = {"id": "talk", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    with pytest.raises(DataError, match=r"record 'talk' .*is a chat in which"):
        encode_ahead.encode_ahead(tmp_path, [*records, chat], settings, STANFORD, str(tiny_llama))
