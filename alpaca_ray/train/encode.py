"""From records to token ids and labels, as Stanford's and Alpaca-LoRA's trainers made them. Pure.

Both tokenise prompt and response as one text, and the prompt once more alone to learn how many tokens to mask; both add
the end token only where nothing was cut off. Masks go by position, never by id, so a padding token that is also the end
token hides nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypedDict

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record
from alpaca_ray.train import chats

IGNORE_INDEX = -100
_CHUNK = 1000


class Sample(TypedDict):
    """One record, ready for the model: two lists of equal length."""

    input_ids: list[int]
    labels: list[int]


def encode(
    records: Sequence[Record],
    tokenizer: Any,
    template: PromptTemplate,
    *,
    max_length: int,
    train_on_inputs: bool = False,
    add_eos: bool = True,
    may_be_empty: bool = False,
) -> list[Sample]:
    """Encode records in their order.

    Args:
        records: instruction records, or chats (``messages``), which take the tokenizer's own chat template; without
            one each of their turns becomes an instruction and its response.
        tokenizer: a Hugging Face tokenizer.
        template: the prompt template of instructions.
        max_length: tokens a sample may have; the rest is cut on the right.
        train_on_inputs: learn the prompt too.
        add_eos: end each sample that was not cut with the end token.
        may_be_empty: accept that no sample has a token to learn (held-out records).

    Raises:
        DataError: a chat that the tokenizer's chat template refuses, or in which, without one, user and assistant do
            not take turns, or no sample with a token to learn.
    """
    samples: list[Sample] = []
    for start in range(0, len(records), _CHUNK):  # a batch keeps fast tokenizers busy on every core
        samples += _encode_chunk(
            records[start : start + _CHUNK], tokenizer, template, max_length, train_on_inputs, add_eos
        )
    if not may_be_empty and not any(has_labels(sample) for sample in samples):
        raise nothing_to_learn(max_length)
    return samples


def nothing_to_learn(max_length: int) -> DataError:
    """Return the error for data in which no sample has a token to learn."""
    return DataError(
        f"no record has a response token within --model_max_length {max_length}: every prompt is longer than that"
    )


def has_labels(sample: Sample) -> bool:
    """Whether a sample has a token to learn (the first one of a row has nothing that predicts it)."""
    return any(label != IGNORE_INDEX for label in sample["labels"][1:])


def _encode_chunk(
    records: Sequence[Record],
    tokenizer: Any,
    template: PromptTemplate,
    max_length: int,
    train_on_inputs: bool,
    add_eos: bool,
) -> list[Sample]:
    records = [_single(record, tokenizer) for record in records]
    plain = [index for index, record in enumerate(records) if not record.get("messages")]
    prompts = [template.format(records[index]) for index in plain]
    texts = [prompt + (records[index].get("output") or "") for prompt, index in zip(prompts, plain, strict=True)]
    whole = _tokenize(tokenizer, texts)
    alone = _tokenize(tokenizer, prompts)
    result: list[Sample | None] = [None] * len(records)
    for index, ids, prompt_ids in zip(plain, whole, alone, strict=True):
        result[index] = _finish(ids, 0 if train_on_inputs else len(prompt_ids), tokenizer, max_length, add_eos)
    for index, record in enumerate(records):
        if record.get("messages"):
            result[index] = _encode_chat(record, tokenizer, template, max_length, train_on_inputs, add_eos)
    return [sample for sample in result if sample is not None]


def _single(record: Record, tokenizer: Any) -> Record:
    """Return a chat of one turn as the instruction record that it is where there is no chat template, else itself."""
    if not record.get("messages") or chats.has_template(tokenizer):
        return record
    turns = chats.exchanges(record)
    return {**record, "messages": None, **turns[0]} if len(turns) == 1 else record


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    return [list(ids[_own(ids, text, tokenizer)]) for ids, text in zip(rows, texts, strict=True)]


def _own(ids: list[int], text: str, tokenizer: Any) -> slice:
    """Return which tokens of a text to keep: no second start token, and no end token that the text does not have."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = int(bos is not None and ids[:2] == [bos, bos])  # the template's own beside the tokenizer's
    # A tokenizer that is set to add the end token would put one behind the prompt, too.
    added = eos is not None and ids[start:] and ids[-1] == eos and not text.endswith(tokenizer.eos_token)
    return slice(start, len(ids) - bool(added))


def _finish(ids: list[int], masked: int, tokenizer: Any, max_length: int, add_eos: bool) -> Sample:
    eos = tokenizer.eos_token_id
    if len(ids) > max_length:
        ids = ids[:max_length]
    elif add_eos and eos is not None and len(ids) < max_length and (len(ids) <= masked or ids[-1] != eos):
        ids = [*ids, eos]
    masked = min(masked, len(ids))
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * masked + ids[masked:]}


def _encode_chat(
    record: Record, tokenizer: Any, template: PromptTemplate, max_length: int, train_on_inputs: bool, add_eos: bool
) -> Sample:
    if chats.has_template(tokenizer):
        chat = chats.rendered(record, tokenizer)
        ids, learnt = _labelled(tokenizer, chat, add_special_tokens=False)
    else:
        chat = chats.as_instructions(chats.exchanges(record), template, tokenizer.eos_token)
        ids, learnt = _labelled(tokenizer, chat, add_special_tokens=True)
        kept, eos = _own(ids, chat.text, tokenizer), tokenizer.eos_token_id
        ids, learnt = ids[kept], learnt[kept]
        if add_eos and len(ids) < max_length and not (learnt[-1] and ids[-1] == eos):
            ids, learnt = [*ids, eos], [*learnt, True]
    labels = [token if train_on_inputs or known else IGNORE_INDEX for token, known in zip(ids, learnt, strict=True)]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def _labelled(tokenizer: Any, chat: chats.ChatText, *, add_special_tokens: bool) -> tuple[list[int], list[bool]]:
    """Return a chat's tokens, and whether each is learnt: those that stand for a character of what is learnt."""
    if not getattr(tokenizer, "is_fast", False):
        return _in_pieces(tokenizer, chat, add_special_tokens=add_special_tokens)
    encoded = tokenizer(
        chat.text,
        add_special_tokens=add_special_tokens,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )
    ids = list(encoded["input_ids"])
    # A token may stand for no character: the word start that some tokenizers put behind a special token.
    spans = [(begin, max(end, begin + 1)) for begin, end in encoded["offset_mapping"]]
    learnt = [any(begin < last and end > first for first, last in chat.learnt) for begin, end in spans]
    return ids, learnt


def _in_pieces(tokenizer: Any, chat: chats.ChatText, *, add_special_tokens: bool) -> tuple[list[int], list[bool]]:
    """As ``_labelled``, where a tokenizer does not say which characters a token stands for: each piece by itself."""
    ids: list[int] = []
    learnt: list[bool] = []
    cuts = [0, *(cut for span in chat.learnt for cut in span), len(chat.text)]
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        special = add_special_tokens and not number
        piece = tokenizer(chat.text[begin:end], add_special_tokens=special, truncation=False, verbose=False)
        ids += piece["input_ids"]
        learnt += [number % 2 == 1] * len(piece["input_ids"])
    return ids, learnt
