"""stanford_alpaca's own parser (``post_process_gpt3_response``), defects included, for ``--parser stanford``.

It goes by counting: an answer is split at every ``###``, and the n-th piece must hold the n-th number. So a heading in
an output ends its task there and shifts every later one out of step, a number ``14.`` is read as ``4.``, and the three
labels may come in any order or twice.
"""

from __future__ import annotations

import re

from alpaca_ray.generate.entry import Entry, task_entry

_PARTS = 7  # nothing, then three labels with their text


def parse_as_stanford(text: str, *, first_number: int, finish_reason: str | None) -> list[Entry]:
    """Take an answer apart (see ``parse_answer`` for the arguments). What the original skips in silence is reported."""
    pieces = f"{first_number}. Instruction:{text}".split("###")
    entries = []
    for number, piece in enumerate(pieces, start=first_number):
        fields = re.split(rf"{number}\.\s+(Instruction|Input|Output):", piece)
        if number == first_number + len(pieces) - 1 and finish_reason == "length":
            if piece.strip():
                entries.append(Entry(piece.strip(), problem="truncated"))
        elif len(fields) == _PARTS:
            entries.append(task_entry(piece.strip(), fields[2].strip(), fields[4].strip(), fields[6].strip()))
        elif piece.strip():
            entries.append(Entry(piece.strip(), problem="unparsable"))
    return entries
