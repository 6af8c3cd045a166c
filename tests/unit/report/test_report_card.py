"""The dataset card, as a hub and as ``datasets`` read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alpaca_ray.report.card import Card, render_card

CARD: dict[str, Any] = {
    "title": "3 records | of <b>x</b>",
    "license": "other",
    "language": "en",
    "synthetic": True,
    "records": 3,
    "schema": "plain",
    "data_file": "data/train.jsonl",
    "summary": "Generated.",
    "facts": [("teacher", "a | b\n<script>")],
    "counts": [("kept", 3), ("too_similar", 1200)],
    "settings": [("similarity_threshold", "0.7")],
    "figures": [("Lengths", "figures/x.png")],
}


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    matter = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(matter, dict)
    return matter


def test_the_front_matter_names_licence_size_and_data_file() -> None:
    matter = front_matter(render_card(Card(**CARD)))
    assert matter["license"] == "other"
    assert matter["language"] == ["en"]
    assert matter["size_categories"] == ["n<1K"]
    assert "synthetic" in matter["tags"]
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.jsonl"}]
    assert front_matter(render_card(Card(**{**CARD, "synthetic": False})))["tags"] == [
        "instruction-tuning",
        "alpaca-ray",
    ]


@pytest.mark.parametrize(
    ("records", "size"),
    [
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (52_002, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (10**7, "10M<n<100M"),
        (10**8, "100M<n<1B"),
        (10**9, "1B<n<10B"),
        (10**10, "10B<n<100B"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_categories(records: int, size: str) -> None:
    assert front_matter(render_card(Card(**{**CARD, "records": records})))["size_categories"] == [size]


def test_the_hub_knows_every_size_category() -> None:
    from huggingface_hub import DatasetCardData

    known = DatasetCardData.__doc__ or ""
    for power in range(13):
        (size,) = front_matter(render_card(Card(**{**CARD, "records": 10**power})))["size_categories"]
        assert f"'{size}'" in known


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("plain", "an `instruction`, an `input`"),
        ("chat", "an `id` and `messages`: a list of turns"),
        ("mixed", "Chats and plain records stand together here."),
    ],
)
def test_the_card_says_which_fields_there_are(schema: str, words: str) -> None:
    assert words in render_card(Card(**{**CARD, "schema": schema}))


def test_somebodys_text_breaks_no_table_and_is_no_html() -> None:
    text = render_card(Card(**CARD))
    assert "| teacher | a \\| b &lt;script&gt; |" in text
    assert "# 3 records \\| of &lt;b&gt;x&lt;/b&gt;" in text
    assert "| too_similar | 1,200 |" in text
    assert "![Lengths](figures/x.png)" in text


def test_the_licence_is_the_users_word_or_not_stated() -> None:
    assert "Not stated." in render_card(Card(**CARD))
    stated = render_card(Card(**{**CARD, "license": "cc-by-nc-4.0"}))
    assert "Not stated." not in stated
    assert front_matter(stated)["license"] == "cc-by-nc-4.0"


def test_datasets_loads_the_folder_by_its_card(tmp_path: Path) -> None:
    from datasets import load_dataset

    (tmp_path / "README.md").write_text(render_card(Card(**CARD)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"id": "a", "instruction": "b", "input": "", "output": "c"}\n')
    (tmp_path / "regen.json").write_text('[{"instruction": "not this"}]')
    loaded = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {name: split.to_list() for name, split in loaded.items()} == {
        "train": [{"id": "a", "instruction": "b", "input": "", "output": "c"}]
    }
