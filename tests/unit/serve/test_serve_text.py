"""Incremental decoding, and stop texts that are held back."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from alpaca_ray.serve.engine.text import IncrementalDecoder, StopScanner


def scan(stops: list[str], pieces: list[str]) -> tuple[list[str], bool, str]:
    scanner = StopScanner(stops)
    out = []
    for piece in pieces:
        text, stopped = scanner.push(piece)
        out.append(text)
        if stopped:
            return out, True, scanner.flush()
    return out, False, scanner.flush()


def test_text_without_stops_passes_at_once() -> None:
    assert scan([], ["a", "b"]) == (["a", "b"], False, "")


def test_a_stop_across_pieces_is_cut_whole() -> None:
    assert scan(["###"], ["one #", "#", "# two"]) == (["one ", "", ""], True, "")


def test_what_only_looked_like_a_stop_is_given_out() -> None:
    assert scan(["###"], ["a ##", " b"]) == (["a ", "## b"], False, "")
    assert scan(["###"], ["a ##"]) == (["a "], False, "##")


def test_the_first_of_several_stops_counts() -> None:
    assert scan(["end", "\n\n"], ["text\n", "\nend"]) == (["text", ""], True, "")
    assert scan(["abcd", "bc"], ["a", "b", "c"]) == (["", "", "a"], True, "")


@pytest.mark.parametrize("text", ["Zürich 🦙 日本語, naïve — “quotes”", "a b  c\n\n d", "🦙🦙🦙", "é"])
def test_pieces_join_to_what_decode_gives(tiny_llama: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokens]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert decoder.flush() == ""


def test_an_unfinished_character_comes_with_the_flush(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = tokenizer("ok 🦙", add_special_tokens=False).input_ids[:-1]
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(decoder.push(token) for token in tokens) == "ok "
    assert set(decoder.flush()) == {"\ufffd"}
