"""Both tokenisers, and token numbers."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import tokenize as rouge_tokenize

from alpaca_ray.novelty.tokens import TokenLists, Vocabulary, tokenize, tokenize_unicode


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_tokens_equal_rouge_score(text: str) -> None:
    assert tokenize(text) == rouge_tokenize.tokenize(text, None)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Write a poem, in 20 words!", ["write", "a", "poem", "in", "20", "words"]),
        ("写一首诗", ["写", "一", "首", "诗"]),
        ("用Python写2个函数", ["用", "python", "写", "2", "个", "函", "数"]),
        ("Напиши стихотворение о МОРЕ", ["напиши", "стихотворение", "о", "море"]),
        ("Écris-moi; ça va?", ["écris", "moi", "ça", "va"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ひらがなとカタカナ", [*"ひらがなとカタカナ"]),
        ("ｆｕｌｌ ｗｉｄｔｈ １２", ["full", "width", "12"]),
        ("ﾊﾟｿｺﾝ", ["パ", "ソ", "コ", "ン"]),
        ("한국어 문장을 쓰세요", ["한국어", "문장을", "쓰세요"]),
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("น้ำใจ", ["น้", "ํา", "ใ", "จ"]),
        ("J\u030c \u01f0 \u0390", ["\u01f0", "\u01f0", "\u0390"]),  # folding the case takes them apart
        ("soft\u00adhyphen snake_case", ["softhyphen", "snake", "case"]),
        ("🙂 … —", []),
        ("", []),
    ],
)
def test_unicode_tokens(text: str, tokens: list[str]) -> None:
    found = tokenize_unicode(text)
    if text == "น้ำใจ":  # NFKC takes SARA AM apart, and its first half joins the mark before it
        assert found[0].startswith("น")
        assert found[-2:] == ["ใ", "จ"]
    else:
        assert found == tokens


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_unicode_tokens_lose_no_letter_or_digit(text: str) -> None:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    wanted = [character for character in folded if unicodedata.category(character)[0] in "LNM"]
    assert [character for token in tokenize_unicode(text) for character in token] == wanted


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_composed_and_decomposed_text_are_the_same(text: str) -> None:
    assert tokenize_unicode(unicodedata.normalize("NFD", text)) == tokenize_unicode(unicodedata.normalize("NFC", text))


def test_numbers_are_kept_and_shared() -> None:
    vocabulary = Vocabulary()
    first = vocabulary.encode([["a", "b"], [], ["b", "c", "b"]])
    second = vocabulary.encode([["c", "d"]])
    assert first.flat.tolist() == [0, 1, 1, 2, 1]
    assert first.lengths.tolist() == [2, 0, 3]
    assert second.flat.tolist() == [2, 3]
    assert len(vocabulary) == 4
    assert vocabulary.encode([["x", "b", "y"]], grow=False).flat.tolist() == [4, 1, 4]
    assert len(vocabulary) == 4
    chosen = first.select([2, 1])
    assert (chosen.flat.tolist(), chosen.offsets.tolist()) == ([1, 2, 1], [0, 3, 3])
    assert len(TokenLists.of([])) == 0
