r"""From a teacher's answer in the numbered form to entries.

The form and the rule that drops a last entry cut off by the length limit are stanford_alpaca's
(``post_process_gpt3_response``). Known defects of the original are mended: a ``### heading`` inside an output no longer
ends the entry and misnumbers every later one, ``14. Input:`` is no field of task 4, and a task that follows without
``###`` is a task of its own. What cannot be taken apart is reported, not skipped.
"""

from __future__ import annotations

import re

from alpaca_ray.generate.entry import Entry, task_entry

# A separator is a line of nothing but "###", or "###" right before a numbered instruction.
_SEPARATOR = re.compile(r"^[ \t]*###[ \t]*$|###\s*(?=\d+\.\s+Instruction:)", re.MULTILINE)
_HEADING = re.compile(r"(?<!\d)(\d+)\.\s+Instruction:")
_LINE_HEADING = re.compile(r"^[ \t]*(\d+)\.\s+Instruction:", re.MULTILINE)


def parse_answer(text: str, *, first_number: int, finish_reason: str | None) -> list[Entry]:
    """Take an answer apart.

    Args:
        text: what the teacher wrote behind ``{first_number}. Instruction:``; a teacher that repeats this heading, as
            chat models do, is understood too.
        first_number: number of the first task asked for.
        finish_reason: the API's; with ``length`` the last entry is reported as ``truncated``.
    """
    if not _starts_with_heading(text):
        text = f"{first_number}. Instruction:{text}"
    pieces = [piece.strip() for block in _SEPARATOR.split(text) for piece in _split_unseparated(block)]
    entries = [_parse_piece(piece) for piece in pieces if piece]
    if entries and pieces[-1] and finish_reason == "length":
        entries[-1] = Entry(entries[-1].text, problem="truncated")
    return entries


def _starts_with_heading(text: str) -> bool:
    return bool(re.match(r"\s*(###\s*)?\d+\.\s+Instruction:", text))


def _split_unseparated(block: str) -> list[str]:
    """Split where the next task's heading begins a line without a separator before it."""
    first = _HEADING.search(block)
    if first is None:
        return [block]
    pieces, start, number = [], 0, int(first[1])
    for heading in _LINE_HEADING.finditer(block, first.end()):
        if int(heading[1]) == number + 1:
            pieces.append(block[start : heading.start()])
            start, number = heading.start(), number + 1
    return [*pieces, block[start:]]


def _parse_piece(piece: str) -> Entry:
    heading = _HEADING.search(piece)
    if heading is None:
        return Entry(piece, problem="unparsable")
    fields = re.split(rf"(?<!\d){heading[1]}\.\s+(Instruction|Input|Output):", piece)
    if fields[1::2] != ["Instruction", "Input", "Output"]:
        return Entry(piece, problem="unparsable")
    instruction, given, output = (field.strip() for field in fields[2::2])
    return task_entry(piece, instruction, given, output)
