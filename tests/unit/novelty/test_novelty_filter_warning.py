from __future__ import annotations

from alpaca_ray.novelty.filter import NoveltyFilter


def test_instructions_without_a_token_are_told() -> None:
    found = NoveltyFilter(["Name a river."])
    assert found.warning is None
    list(found.decide(["写一首诗", "写一首诗", "Name a river."]))
    assert found.warning is not None
    assert "2 of 3 instructions hold no token of --tokenizer rouge" in found.warning
    assert "--tokenizer unicode" in found.warning
    other = NoveltyFilter([], tokenizer="unicode")
    assert [decision.keep for decision in other.decide(["写一首诗", "写一首诗"])] == [True, False]
    assert other.warning is None
