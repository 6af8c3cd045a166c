"""Settings of what is made of an answer before novelty is asked: the parser, and each filter by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import TypeAdapter, ValidationError, field_validator, model_validator

from alpaca_ray.settings.base import setting
from alpaca_ray.settings.prompting import PromptSettings

# The original's list: words of tasks that a text model cannot carry out.
BLACKLIST = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
# <|endoftext|> of GPT-3's tokenizer: the original keeps the model from ending before it has written all its tasks.
_NO_END = {"50256": -100}

# What decides which entries of an answer are kept; other values need no new request.
DECIDING_FILTERS = (
    "parser",
    "min_words",
    "max_words",
    "word_count",
    "blacklist",
    "blacklist_sense",
    "drop_write_a_program",
    "drop_punctuation_start",
    "drop_non_ascii_start",
    "drop_empty_output",
)
# What changes the requests.
ASKING_FILTERS = ("response_format", "machine_examples", "strategy")


class FilterSettings(PromptSettings):
    """The original's parser and filters, and what is better about ours."""

    # What ``stanford_compat`` stands for. Source: ``post_process_gpt3_response`` of stanford_alpaca.
    compat: ClassVar[dict[str, Any]] = {
        "response_format": "text",
        "machine_examples": 0,
        "strategy": "self_instruct",
        "parser": "stanford",
        "min_words": 4,
        "max_words": 150,
        "word_count": "whitespace",
        "blacklist": list(BLACKLIST),
        "blacklist_sense": "any",
        "drop_write_a_program": True,
        "drop_punctuation_start": True,
        "drop_non_ascii_start": True,
        "drop_empty_output": False,
    }

    stanford_compat: bool = setting(
        False,
        "The original's parser, filters, stop texts and logit_bias exactly, defects included. Filter flags that say "
        "otherwise are refused beside it.",
        group="filters",
    )
    parser: Literal["robust", "stanford"] = setting(
        "robust",
        "How an answer in text form is taken apart. stanford: at every '###', which a heading in an output holds too, "
        "and by counting: one such heading loses all later tasks.",
        group="filters",
    )
    min_words: int = setting(4, "Drop an instruction of fewer words.", group="filters", ge=0)
    max_words: int = setting(150, "Drop an instruction of more words.", group="filters", ge=1)
    word_count: Literal["unicode", "whitespace"] = setting(
        "unicode",
        "What a word is. whitespace: the original's, for which a Chinese sentence is one word; unicode: in scripts "
        "written without spaces, two characters (four in Thai, Lao, Khmer and Burmese).",
        group="filters",
    )
    blacklist: list[str] = setting(
        list(BLACKLIST),
        "Words of tasks that a text model cannot carry out: words, .txt files with one a line, or 'none'.",
        group="filters",
    )
    blacklist_sense: Literal["medium", "any"] = setting(
        "medium",
        "When such a word drops an instruction. any: wherever it stands (the original; 'map each city to its country' "
        "goes too). medium: where the task makes or needs the thing: 'draw a map', 'this image', 'the file below'.",
        group="filters",
    )
    drop_write_a_program: bool = setting(
        True, "Drop an instruction that begins with 'Write a program', which teachers repeat.", group="filters"
    )
    drop_punctuation_start: bool = setting(
        True, "Drop an instruction that begins with ASCII punctuation.", group="filters"
    )
    drop_non_ascii_start: bool = setting(
        False, "Drop an instruction whose first character is not ASCII, as the original does.", group="filters"
    )
    drop_empty_output: bool = setting(True, "Drop an entry without output.", group="filters")

    @classmethod
    def dialect(cls, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return what ``stanford_compat`` sets, where it is given."""
        with suppress(ValidationError):  # what is no boolean is refused later, by name
            if TypeAdapter(bool).validate_python(given.get("stanford_compat", False)):
                return "stanford_compat", dict(cls.compat)
        return "", {}

    @field_validator("blacklist", mode="after")
    @classmethod
    def _read_blacklist(cls, values: list[str]) -> list[str]:
        """Put the words of files in their place: a run is known by its words."""
        if [value.strip().lower() for value in values] == ["none"]:
            return []
        found = [word for value in values for word in _words(value)]
        if not found:
            raise ValueError("holds no word: 'none' turns it off")
        return list(dict.fromkeys(found))

    @model_validator(mode="after")
    def _check_filters(self) -> Self:
        if self.max_words < self.min_words:
            raise ValueError(f"--max_words {self.max_words} is below --min_words {self.min_words}")
        if not self.stanford_compat:
            return self
        for name, value in self.compat.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"--{name} {_shown(getattr(self, name))} contradicts --stanford_compat, which has {_shown(value)}: "
                    "leave one of them out"
                )
        if getattr(self, "stop", None) is not None:
            raise ValueError("--stop contradicts --stanford_compat, which has stop texts of its own: leave one out")
        return self

    def default_stops(self, num_tasks: int) -> list[str]:
        """Return the stop texts of a request where the user gives none.

        Args:
            num_tasks: tasks that a prompt asks for, its examples included.
        """
        if self.response_format != "text":
            return []
        if self.strategy == "evolve":
            return ["\n2. Instruction"]
        if self.stanford_compat:  # "20." ends "in 2020." too
            return [f"\n{num_tasks}", f"{num_tasks}.", f"{num_tasks}."]
        return [f"\n{num_tasks + 1}. Instruction"]

    def compat_parameters(self, api: str) -> dict[str, Any]:
        """Return what the original sends beside its sampling parameters; only the completions API has its tokens."""
        return {"logit_bias": dict(_NO_END)} if self.stanford_compat and api == "completions" else {}


def _words(value: str) -> Sequence[str]:
    if not value.endswith(".txt"):
        return [value.strip()] if value.strip() else []
    try:
        lines = Path(value).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{value}: {reason}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _shown(value: Any) -> str:
    if value == list(BLACKLIST):
        return "the original's list"
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value).lower()
