"""Masks, end tokens and truncation, checked against what the originals' trainers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import ALPACA_LORA, STANFORD, load_template
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.testing.tiny import make_tiny_model
from alpaca_ray.train.encode import IGNORE_INDEX, encode, has_labels


@pytest.fixture(scope="module", params=[False, True], ids=["no padding token", "padding is the end token"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = make_tiny_model(tmp_path_factory.mktemp("encode") / "model", pad_is_eos=request.param)
    return AutoTokenizer.from_pretrained(folder)


RECORDS = read_records("seeds")


@pytest.mark.parametrize("template", [STANFORD, ALPACA_LORA])
def test_labels_mask_exactly_the_prompt_and_every_sample_ends_with_the_end_token(tokenizer: Any, template: Any) -> None:
    for record, sample in zip(RECORDS, encode(RECORDS, tokenizer, template, max_length=1024), strict=True):
        prompt = template.format(record)
        masked = len(tokenizer(prompt)["input_ids"])
        assert sample["labels"][:masked] == [IGNORE_INDEX] * masked
        assert sample["labels"][masked:] == sample["input_ids"][masked:]
        assert sample["input_ids"] == [*tokenizer(prompt + record["output"])["input_ids"], tokenizer.eos_token_id]
        assert sample["labels"][-1] == tokenizer.eos_token_id
        assert sample["input_ids"].count(tokenizer.bos_token_id) == 1
        text = tokenizer.decode(sample["input_ids"], skip_special_tokens=True)
        assert text == prompt + record["output"]


def test_stanfords_own_formula_gives_the_same_labels(tokenizer: Any) -> None:
    """Its train.py joins prompt, output and end token as text, and masks as many tokens as the prompt alone has."""
    samples = encode(RECORDS, tokenizer, STANFORD, max_length=128)
    for record, sample in zip(RECORDS, samples, strict=True):
        source = STANFORD.format(record)
        ids = tokenizer(source + record["output"] + tokenizer.eos_token, max_length=128, truncation=True)["input_ids"]
        source_length = len(tokenizer(source, max_length=128, truncation=True)["input_ids"])
        assert sample["input_ids"] == ids
        assert sample["labels"] == [IGNORE_INDEX] * source_length + ids[source_length:]


def alpaca_loras_own(record: Any, tokenizer: Any, settings: TrainSettings) -> tuple[list[int], list[int]]:
    """What finetune.py's formula gives: the whole text always gets the end token where nothing was cut off."""
    limit = settings.model_max_length

    def ids_of(text: str, add_eos: bool = True) -> list[int]:
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        return (
            [*ids, tokenizer.eos_token_id]
            if ids[-1] != tokenizer.eos_token_id and len(ids) < limit and add_eos
            else ids
        )

    prompt = ALPACA_LORA.format(record)
    ids = ids_of(prompt + record["output"])
    if settings.train_on_inputs:
        return ids, ids
    masked = len(ids_of(prompt, settings.add_eos_token)) - settings.add_eos_token
    return ids, [IGNORE_INDEX] * masked + ids[masked:]


@pytest.mark.parametrize("flags", [[], ["--add_eos_token"], ["--no_train_on_inputs"], ["--cutoff_len", "160"]])
def test_alpaca_loras_dialect_encodes_as_its_own_formula_did(tokenizer: Any, flags: list[str]) -> None:
    settings = parse_settings(TrainSettings, ["--base_model", "m", *flags], description="test")
    samples = encode(
        RECORDS,
        tokenizer,
        load_template(settings.prompt_template),
        max_length=settings.model_max_length,
        train_on_inputs=settings.train_on_inputs,
        add_eos=settings.ends_samples,
    )
    for record, sample in zip(RECORDS, samples, strict=True):
        assert (sample["input_ids"], sample["labels"]) == alpaca_loras_own(record, tokenizer, settings)
    ended = [sample["input_ids"][-1] == tokenizer.eos_token_id for sample in samples]
    assert any(ended)
    assert not all(ended)


def test_a_cut_sample_has_no_end_token(tokenizer: Any) -> None:
    whole = encode(RECORDS[:1], tokenizer, STANFORD, max_length=1024)[0]["input_ids"]
    limit = len(whole) - 1
    cut = encode(RECORDS[:1], tokenizer, STANFORD, max_length=limit)[0]
    assert cut["input_ids"] == whole[:limit]
    assert len(cut["input_ids"]) == len(cut["labels"]) == limit
    assert cut["input_ids"][-1] != tokenizer.eos_token_id


def test_training_on_inputs_and_leaving_the_end_token_out(tokenizer: Any) -> None:
    sample = encode(RECORDS[:1], tokenizer, ALPACA_LORA, max_length=1024, train_on_inputs=True, add_eos=False)[0]
    assert sample["labels"] == sample["input_ids"]
    assert sample["input_ids"][-1] != tokenizer.eos_token_id


def test_an_output_that_already_ends_with_the_end_token_does_not_get_two(tokenizer: Any) -> None:
    record = {"instruction": "Say hi.", "output": "hi" + tokenizer.eos_token}
    sample = encode([record], tokenizer, STANFORD, max_length=512)[0]
    assert sample["input_ids"][-2:].count(tokenizer.eos_token_id) == 1


def test_an_empty_output_learns_the_end_token_even_after_a_prompt_that_ends_with_it(tokenizer: Any) -> None:
    record = {"instruction": "Say nothing.", "output": ""}
    sample = encode([record], tokenizer, STANFORD, max_length=512)[0]
    assert sample["labels"][-1] == tokenizer.eos_token_id
    assert sum(label != IGNORE_INDEX for label in sample["labels"]) == 1


def test_data_in_which_nothing_is_left_to_learn_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="--model_max_length 16"):
        encode(RECORDS[:3], tokenizer, STANFORD, max_length=16)
    heldout = encode(RECORDS[:3], tokenizer, STANFORD, max_length=16, may_be_empty=True)
    assert [has_labels(sample) for sample in heldout] == [False] * 3


def test_a_sample_whose_prompt_fills_the_limit_has_no_labels(tokenizer: Any) -> None:
    long = {"instruction": "word " * 400, "output": "never seen"}
    samples = encode([long, RECORDS[0]], tokenizer, STANFORD, max_length=300)
    assert [has_labels(sample) for sample in samples] == [False, True]


CHAT = {
    "id": "talk",
    "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi there"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"},
    ],
}
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_learns_only_the_assistants_turns_with_their_end_tokens(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    try:
        sample = encode([CHAT], tokenizer, STANFORD, max_length=512)[0]
    finally:
        tokenizer.chat_template = None
    learnt = [label for label in sample["labels"] if label != IGNORE_INDEX]
    assert tokenizer.decode(learnt) == "Hi there</s>See you</s>"
    assert tokenizer.decode(sample["input_ids"]) == (
        "[user]Hello</s>[assistant]Hi there</s>[user]Bye</s>[assistant]See you</s>"
    )


def test_a_chat_that_no_instructions_can_be_made_of_is_named(tokenizer: Any) -> None:
    twice = {**CHAT, "messages": [CHAT["messages"][0], *CHAT["messages"]]}
    with pytest.raises(DataError, match=r"record 'talk' .*is a chat in which"):
        encode([twice], tokenizer, STANFORD, max_length=512)


def test_a_chat_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(DataError, match=r"record 'talk' .*roles must alternate"):
            encode([CHAT], tokenizer, STANFORD, max_length=512)
    finally:
        tokenizer.chat_template = None


def test_a_tokenizer_that_adds_end_tokens_itself_puts_none_behind_the_prompt(tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "model"))
    before = encode(RECORDS[:3], own, STANFORD, max_length=512)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", own.bos_token_id), ("</s>", own.eos_token_id)]
    )
    assert own("x")["input_ids"][-1] == own.eos_token_id
    assert encode(RECORDS[:3], own, STANFORD, max_length=512) == before
