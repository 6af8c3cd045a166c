"""The templates, byte for byte as the originals have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import ALPACA_LORA, STANFORD, load_template

STANFORD_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd {x}.\n\n### Input:\n1 {y} 2\n\n### Response:"
)
STANFORD_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd {x}.\n\n### Response:"
)


def test_stanford_bytes() -> None:
    assert STANFORD.format({"instruction": "Add {x}.", "input": "1 {y} 2"}) == STANFORD_INPUT
    assert STANFORD.format({"instruction": "Add {x}.", "input": ""}) == STANFORD_NO_INPUT
    assert STANFORD.format({"instruction": "Add {x}."}) == STANFORD_NO_INPUT


def test_alpaca_lora_ends_with_a_newline() -> None:
    for record in ({"instruction": "a", "input": "b"}, {"instruction": "a"}):
        assert ALPACA_LORA.format(record) == STANFORD.format(record) + "\n"


def test_short_template() -> None:
    short = load_template("alpaca_short")
    assert short.format({"instruction": "a", "input": "b"}) == (
        "### Instruction:\na\n\n### Input:\nb\n\n### Response:\n"
    )


def test_response_is_what_stands_behind_the_marker() -> None:
    text = ALPACA_LORA.format({"instruction": "a"}) + "first\n\n### Response: still the answer "
    assert ALPACA_LORA.response(text) == "first\n\n### Response: still the answer"


def test_names() -> None:
    assert load_template("") == load_template("alpaca") == ALPACA_LORA
    assert load_template("stanford") == load_template("alpaca_legacy") == STANFORD


def test_a_template_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "prompt_template.json"
    path.write_text(ALPACA_LORA.to_json())
    assert load_template(str(path)) == ALPACA_LORA


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON template"),
        (json.dumps({"prompt_input": "x"}), "needs the keys"),
        (json.dumps({"prompt_input": "x", "prompt_no_input": "y", "colour": 1}), "unknown key 'colour'"),
        (json.dumps({"prompt_input": "{instruktion}", "prompt_no_input": "y"}), "only {instruction} and {input}"),
        (
            json.dumps({"prompt_input": "{instruction} {input}", "prompt_no_input": "Q"}),
            "prompt_no_input has no {instr",
        ),
        (json.dumps({"prompt_input": "{input}", "prompt_no_input": "{instruction}"}), "prompt_input has no {instr"),
        (json.dumps({"prompt_input": "{instruction}", "prompt_no_input": "{instruction}"}), "prompt_input has no {inp"),
        (json.dumps({"prompt_input": ["{input}"], "prompt_no_input": "y"}), "prompt_input must be a text"),
        (
            json.dumps(
                {"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}", "response_split": ""}
            ),
            "response_split must be a text that is not empty",
        ),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message.replace("{", r"\{")):
        load_template(str(path))


def test_unknown_name() -> None:
    with pytest.raises(DataError, match="no prompt template 'vicuna'"):
        load_template("vicuna")
