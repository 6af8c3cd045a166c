"""The demo asks only what training held out."""

from __future__ import annotations

import json
from pathlib import Path

from alpaca_ray.demo import held_out_questions
from alpaca_ray.records import read_records


def test_only_held_out_records_are_asked_shortest_first(tmp_path: Path) -> None:
    seeds = read_records("seeds")
    ids = [seeds[index]["id"] for index in (3, 10, 50)]
    (tmp_path / "heldout_ids.json").write_text(json.dumps(ids))
    asked = held_out_questions(tmp_path, [], 2)
    lengths = [len(record["instruction"]) + len(record["input"]) for record in asked]
    assert {record["id"] for record in asked} < set(ids)
    assert lengths == sorted(lengths)
    assert len(held_out_questions(tmp_path, [], 9)) == 3
