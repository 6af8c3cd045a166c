"""From records to token ids and labels, as Stanford's and Alpaca-LoRA's trainers made them. Pure.

Both tokenise prompt and response as one text, and the prompt once more alone to learn how many tokens to mask; both add
the end token only where nothing was cut off. Masks go by position, never by id, so a padding token that is also the end
token hides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record

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
        records: instruction records, or chats (``messages``), which take the tokenizer's own chat template.
        tokenizer: a Hugging Face tokenizer.
        template: the prompt template of instruction records.
        max_length: tokens a sample may have; the rest is cut on the right.
        train_on_inputs: learn the prompt too.
        add_eos: end each sample that was not cut with the end token.
        may_be_empty: accept that no sample has a token to learn (held-out records).

    Raises:
        DataError: a chat record where the tokenizer has no chat template, or whose template refuses it, or no sample
            with a token to learn.
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
            result[index] = encode_chat(record, tokenizer, max_length=max_length, train_on_inputs=train_on_inputs)
    return [sample for sample in result if sample is not None]


def _tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    cleaned = []
    for ids, text in zip(rows, texts, strict=True):
        if bos is not None and ids[:2] == [bos, bos]:  # the template's own beside the tokenizer's
            ids = ids[1:]
        # A tokenizer that is set to add the end token would put one behind the prompt, too.
        if eos is not None and ids and ids[-1] == eos and not text.endswith(tokenizer.eos_token):
            ids = ids[:-1]
        cleaned.append(list(ids))
    return cleaned


def _finish(ids: list[int], masked: int, tokenizer: Any, max_length: int, add_eos: bool) -> Sample:
    eos = tokenizer.eos_token_id
    if len(ids) > max_length:
        ids = ids[:max_length]
    elif add_eos and eos is not None and len(ids) < max_length and (len(ids) <= masked or ids[-1] != eos):
        ids = [*ids, eos]
    masked = min(masked, len(ids))
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * masked + ids[masked:]}


def encode_chat(record: Record, tokenizer: Any, *, max_length: int, train_on_inputs: bool = False) -> Sample:
    """Encode a chat with the tokenizer's own template; labels on the assistant's turns and their end tokens only.

    Raises:
        DataError: the tokenizer has no chat template, or one that refuses the chat or rewrites earlier turns.
    """
    name = f"record {record.get('id')!r}"
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{name} is a chat, and this model's tokenizer has no chat template: use instruction records")
    messages = record["messages"]
    full = _apply(tokenizer, messages, name)
    ids: list[int] = []
    labels: list[int] = []
    position = 0

    def add(end: int, learn: bool) -> None:
        nonlocal position
        piece = tokenizer(full[position:end], add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        ids.extend(piece)
        labels.extend(piece if learn or train_on_inputs else [IGNORE_INDEX] * len(piece))
        position = end

    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(tokenizer, messages[:number], name, add_generation_prompt=True)
        after = _apply(tokenizer, messages[: number + 1], name)
        if not (full.startswith(before) and full.startswith(after)):
            raise DataError(f"{name}: the tokenizer's chat template rewrites earlier turns; only single turns work")
        add(len(before), learn=False)
        add(len(after), learn=True)
    add(len(full), learn=False)
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def _apply(tokenizer: Any, messages: list[dict[str, Any]], name: str, **options: Any) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError as error:  # a template's own raise_exception, too
        raise DataError(f"{name}: the tokenizer's chat template refuses it: {error}") from error
