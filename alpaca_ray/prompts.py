r"""The originals' training templates, byte for byte, and template files in Alpaca-LoRA's JSON form.

Sources: ``PROMPT_DICT`` of stanford_alpaca ``train.py``; ``templates/alpaca.json`` and ``templates/alpaca_short.json``
of alpaca-lora. They differ in one byte that matters: Stanford's ends with ``### Response:``, Alpaca-LoRA's with a
newline behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_NO_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


@dataclass(frozen=True)
class PromptTemplate:
    """How a record becomes the text that the model continues.

    ``prompt_input`` and ``prompt_no_input`` hold the fields ``{instruction}`` and ``{input}``; ``response_split`` is
    the text behind which the response begins.
    """

    description: str
    prompt_input: str
    prompt_no_input: str
    response_split: str = "### Response:"

    def format(self, record: Mapping[str, Any]) -> str:
        """Return the prompt of a record; an empty or missing ``input`` selects the template without one."""
        values = {"instruction": record["instruction"], "input": record.get("input") or ""}
        template = self.prompt_input if values["input"] else self.prompt_no_input
        return template.format_map(values)

    def response(self, text: str) -> str:
        """Return what stands behind the response marker in ``text``, stripped, as Alpaca-LoRA's page shows it."""
        return text.split(self.response_split, 1)[-1].strip()

    def to_json(self) -> str:
        """Return the template in Alpaca-LoRA's JSON form."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"


STANFORD = PromptTemplate("Stanford Alpaca's template.", _WITH_INPUT, _NO_INPUT)
ALPACA_LORA = PromptTemplate("Alpaca-LoRA's template.", _WITH_INPUT + "\n", _NO_INPUT + "\n")
ALPACA_SHORT = PromptTemplate(
    "Alpaca-LoRA's short template.",
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "### Instruction:\n{instruction}\n\n### Response:\n",
)

TEMPLATES = {
    "stanford": STANFORD,
    "alpaca": ALPACA_LORA,
    "alpaca_legacy": STANFORD,
    "alpaca_short": ALPACA_SHORT,
}

# Texts that no template holds.
_PROBE = {"instruction": "\ue000instruction\ue000", "input": "\ue000input\ue000"}


def load_template(name_or_path: str) -> PromptTemplate:
    """Return a template by name, or from a JSON file in Alpaca-LoRA's form.

    Raises:
        DataError: the name is unknown and no such file exists, or the file is not of that form, or leaves a record's
            instruction or input out.
    """
    if not name_or_path:  # Alpaca-LoRA's default: an empty name means its own template
        return ALPACA_LORA
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(TEMPLATES))
        raise DataError(f"no prompt template {name_or_path!r}: give one of {known}, or the path of a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON template: {error}") from error
    fields = {"description", "prompt_input", "prompt_no_input", "response_split"}
    if not isinstance(content, dict) or not {"prompt_input", "prompt_no_input"} <= content.keys():
        raise DataError(f"{path}: a template needs the keys prompt_input and prompt_no_input")
    unknown = content.keys() - fields
    if unknown:
        raise DataError(f"{path}: unknown key {sorted(unknown)[0]!r}; a template has {', '.join(sorted(fields))}")
    for key, value in content.items():
        if not isinstance(value, str) or (key == "response_split" and not value):
            raise DataError(f"{path}: {key} must be a text that is not empty, not {value!r}")
    template = PromptTemplate(**{"description": "", **content})
    try:
        both = template.format(_PROBE)
        alone = template.format({"instruction": _PROBE["instruction"]})
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: only {{instruction}} and {{input}} may stand in braces ({error})") from error
    for key, text, field in (
        ("prompt_input", both, "instruction"),
        ("prompt_input", both, "input"),
        ("prompt_no_input", alone, "instruction"),
    ):
        if _PROBE[field] not in text:
            raise DataError(f"{path}: {key} has no {{{field}}}: the model would never see it")
    return template
