from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.generate.answers import AnswerReader, strip_thinking
from alpaca_ray.generate.entry import Entry
from alpaca_ray.generate.filters import EntryFilter
from alpaca_ray.generate.words import unicode_words, whitespace_words
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.filters import ASKING_FILTERS, BLACKLIST, DECIDING_FILTERS, FilterSettings
from alpaca_ray.settings.generate import GenerateSettings

GOOD = "Name the longest river of Peru."


def reason(instruction: str, output: str = "out", **given: Any) -> str | None:
    return EntryFilter(FilterSettings.resolve(given)).reason(Entry("", instruction, "", output))


@pytest.mark.parametrize(
    ("instruction", "found"),
    [
        (GOOD, None),
        ("Name three rivers", "too_short"),
        ("Name three rivers now", None),
        ("", "too_short"),
        (" ".join(["word"] * 151), "too_long"),
        (" ".join(["word"] * 150), None),
        ("Please go to the shop at noon.", "blacklisted_word"),
        ("Write a program that adds two numbers.", "write_a_program"),
        ("Please write a program that adds numbers.", None),
        ("'Tis the season: write a verse.", "starts_with_punctuation"),
        ("Écris un poème sur la mer.", None),
    ],
)
def test_filters_name_their_reason(instruction: str, found: str | None) -> None:
    assert reason(instruction) == found


@pytest.mark.parametrize(
    ("instruction", "given", "found"),
    [
        ("Name three rivers", {"min_words": 3}, None),
        (GOOD, {"min_words": 7}, "too_short"),
        (GOOD, {"max_words": 5}, "too_long"),
        ("", {"min_words": 0}, "too_short"),
        ("Write a program that adds two numbers.", {"drop_write_a_program": False}, None),
        ("'Tis the season: write a verse.", {"drop_punctuation_start": False}, None),
        ("Écris un poème sur la mer.", {"drop_non_ascii_start": True}, "not_ascii_start"),
        ("列出秘鲁最长的河流", {}, None),
        ("列出秘鲁最长的河流", {"word_count": "whitespace"}, "too_short"),
        ("Draw a map of the town.", {"blacklist": ["none"]}, None),
        ("Tell a joke about a frog.", {"blacklist": ["frog"], "blacklist_sense": "any"}, "blacklisted_word"),
        ("Tell a joke about a froggy.", {"blacklist": ["frog"], "blacklist_sense": "any"}, None),
        ("Draw a map of the town.", {"blacklist": ["frog"]}, None),
        ("Please describe the frog.", {"blacklist": ["frog"]}, "blacklisted_word"),
        ("描述这张图片里的人物", {"blacklist": ["图片"]}, "blacklisted_word"),
        ("Beschreibe kurz das Gemälde von ihm.", {"blacklist": ["gemälde"]}, "blacklisted_word"),
        ("Beschreibe kurz die Gemäldesammlung von ihm.", {"blacklist": ["gemälde"]}, None),
    ],
)
def test_each_filter_is_a_setting(instruction: str, given: dict[str, Any], found: str | None) -> None:
    assert reason(instruction, **given) == found


def test_an_empty_output_is_dropped_unless_it_may_pass() -> None:
    assert reason(GOOD, "") == "empty_output"
    assert reason(GOOD, "", drop_empty_output=False) is None


def test_rules_apply_in_the_originals_order() -> None:
    assert reason("Draw video", "") == "too_short"
    assert reason("Write a program, then draw it.") == "blacklisted_word"
    assert reason("Write a program that adds numbers.", "") == "write_a_program"
    entry = Entry("", "Draw it", "", "", problem="truncated")
    assert EntryFilter(FilterSettings()).reason(entry) == "truncated"


@pytest.mark.parametrize("word", BLACKLIST)
def test_in_any_sense_each_word_counts_in_any_case(word: str) -> None:
    assert reason(f"Now {word.upper()} it for the class.", blacklist_sense="any") == "blacklisted_word"
    assert reason(f"Now x{word} it for the class.", blacklist_sense="any") is None


@pytest.mark.parametrize(
    "instruction",
    [
        "Draw a cat with three legs.",
        "Could you draw me a horse?",
        "Read the data, then plot it.",
        "Graph the function y = 2x + 1.",
        "Go to the nearest shop and buy milk.",
        "Create a flowchart that explains photosynthesis.",
        "Make a bar graph from the sales below.",
        "Show me some pictures of otters.",
        "Generate an image of a red barn.",
        "Describe this picture in one sentence.",
        "What do the people in the attached photo file say?",
        "Use the map below to find the river.",
        "Please describe the image.",
        "Listen to the audio and write down the words.",
        "Open the file and count its lines.",
        "Design a detailed wiring diagram for a doorbell.",
    ],
)
def test_tasks_that_make_or_need_a_medium_are_dropped(instruction: str) -> None:
    assert reason(instruction) == "blacklisted_word"


@pytest.mark.parametrize(
    "instruction",
    [
        "Map each city to the country it lies in.",
        "Explain what the function map does in Python.",
        "Summarise the plot of a fairy tale that you know.",
        "Write a short plot for a detective story.",
        "What conclusions can one draw from these numbers?",
        "How does file compression work in principle?",
        "Give a synonym for the word picture.",
        "Write a poem about music and the sea.",
        "Explain graph theory to a child of ten.",
        "Compare music of the Baroque with that of the Romantic era.",
        "Suggest names for a video game about bees.",
        "Make a list of files that a tax adviser needs.",
        "Who invented the first audio cassette?",
        "Describe the music of the Baroque era.",
    ],
)
def test_the_same_words_in_another_sense_pass(instruction: str) -> None:
    assert reason(instruction) is None
    assert reason(instruction, blacklist_sense="any") == "blacklisted_word"


@pytest.mark.parametrize(
    ("text", "unicode", "whitespace"),
    [
        ("one two  three\nfour", 4, 4),
        ("don't-stop, now!", 2, 2),
        ("- a dash -", 4, 4),
        ("列出三条河流", 3, 1),
        ("请把这句话翻译成英文：你好。", 5 + 1, 1),
        ("用 Python 写一个函数", 1 + 1 + 3, 3),
        ("3条河流", 1 + 2, 1),
        ("カタカナで書いて", 4, 1),
        ("สวัสดีครับ", 3, 1),
        ("강을 세 개 나열하세요", 4, 4),
        ("", 0, 0),
    ],
)
def test_words_in_scripts_with_and_without_spaces(text: str, unicode: int, whitespace: int) -> None:
    assert (unicode_words(text), whitespace_words(text)) == (unicode, whitespace)


def test_a_blacklist_from_files_and_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# animals\nfrog\n\n  tree frog \n")
    settings = FilterSettings.resolve({"blacklist": [str(tmp_path / "words.txt"), "newt", "frog"]})
    assert settings.blacklist == ["frog", "tree frog", "newt"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--blacklist absent.txt", r"--blacklist: absent\.txt: No such file"),
        ("--min_words 9 --max_words 5", "--max_words 5 is below --min_words 9"),
        ("--parser mine", "--parser"),
        ("--word_count bytes", "--word_count"),
        ("--machine_examples 3 --num_prompt_instructions 3", "--machine_examples 3 must be below"),
        ("--machine_examples 1 --strategy evolve", "--machine_examples and --strategy evolve contradict"),
        ("--stanford_compat perhaps", "--stanford_compat"),
        ("--stanford_compat --min_words 2", "--min_words 2 contradicts --stanford_compat, which has 4"),
        ("--stanford_compat --parser robust", "--parser robust contradicts --stanford_compat, which has stanford"),
        ("--stanford_compat --blacklist none", "--blacklist none contradicts .* has the original's list"),
        ("--stanford_compat --drop_empty_output", "--drop_empty_output true contradicts .* has false"),
        ("--stanford_compat --response_format json_schema", "--response_format json_schema contradicts"),
        ("--stanford_compat --stop ###", "--stop contradicts --stanford_compat"),
    ],
)
def test_what_cannot_be_is_one_line(line: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        parse_settings(GenerateSettings, line.split(), description="")
    assert "\n" not in str(raised.value)


def test_compat_stands_for_named_settings() -> None:
    settings = parse_settings(GenerateSettings, ["--stanford_compat", "--min_words", "4"], description="")
    assert {name: getattr(settings, name) for name in FilterSettings.compat} == FilterSettings.compat
    assert settings.source("parser") == "stanford_compat default"
    assert settings.source("min_words") == "flag"
    assert not settings.was_given("parser")
    off = parse_settings(GenerateSettings, ["--stanford_compat", "false", "--min_words", "2"], description="")
    assert (off.parser, off.min_words, off.stanford_compat) == ("robust", 2, False)


def test_every_setting_decides_or_asks() -> None:
    assert {*DECIDING_FILTERS, *ASKING_FILTERS} == FilterSettings.model_fields.keys() - {"stanford_compat"}
    assert {*FilterSettings.compat} == FilterSettings.model_fields.keys() - {"stanford_compat"}


@pytest.mark.parametrize(
    ("given", "stops"),
    [
        ({}, ["\n21. Instruction"]),
        ({"stanford_compat": True}, ["\n20", "20.", "20."]),
        ({"strategy": "evolve"}, ["\n2. Instruction"]),
        ({"response_format": "json_schema"}, []),
        ({"response_format": "json_schema", "strategy": "evolve"}, []),
    ],
)
def test_stop_texts(given: dict[str, Any], stops: list[str]) -> None:
    assert GenerateSettings.resolve(dict(given)).stops() == stops


def test_the_stop_text_of_the_original_cuts_a_year() -> None:
    output = "It happened in 2020. Nobody knew."
    compat, ours = (GenerateSettings.resolve({"stanford_compat": on}).stops() for on in (True, False))
    assert any(stop in output for stop in compat)
    assert not any(stop in output for stop in ours)


def test_only_the_completions_api_gets_the_logit_bias() -> None:
    compat = FilterSettings.resolve({"stanford_compat": True})
    assert compat.compat_parameters("completions") == {"logit_bias": {"50256": -100}}
    assert compat.compat_parameters("chat") == {}
    assert FilterSettings().compat_parameters("completions") == {}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>one\n### two</think>\n 4. Instruction: x", "\n 4. Instruction: x"),
        ("\n<think>a</think><think>b</think>x", "x"),
        ("<thinking>a </think> b</thinking>x", "x"),
        ("<think>never ends 4. Output:", ""),
        ("opened by the template</think>x", "x"),
        ("no thought", "no thought"),
        ("Explain the tag <think> of models.", "Explain the tag <think> of models."),
        ("Write <think>a</think> twice.", "Write <think>a</think> twice."),
    ],
)
def test_thinking_is_no_answer(text: str, left: str) -> None:
    assert strip_thinking(text) == left


@pytest.mark.parametrize("compat", [True, False])
def test_a_reasoning_teachers_answer_is_read(compat: bool) -> None:
    reader = AnswerReader(FilterSettings.resolve({"stanford_compat": compat}), first_number=4)
    text = "<think>4. Output: ### 4. Instruction: no</think> Name a river of Peru.\n4. Input:\nx\n4. Output:\nUcayali"
    ((entry, found),) = reader.read(text, "stop")
    assert (entry.instruction, entry.input, entry.output, found) == ("Name a river of Peru.", "x", "Ucayali", None)
    ((cut, found),) = reader.read("<think>so long 4. Output:", "length")
    assert found == cut.problem == "truncated"
