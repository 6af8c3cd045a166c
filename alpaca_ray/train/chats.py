"""Chats as text: by the tokenizer's chat template, or as instructions where it has none. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alpaca_ray.errors import DataError
from alpaca_ray.prompts import PromptTemplate
from alpaca_ray.records import Record, first_user_message

_SHOWN = 60  # characters of a chat that an error shows


@dataclass(frozen=True)
class ChatText:
    """A chat's text, and where in it what the model has to learn begins and ends (positions of characters)."""

    text: str
    learnt: list[tuple[int, int]]


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def rendered(record: Record, tokenizer: Any) -> ChatText:
    """Return a chat in the tokenizer's own template; the assistant's turns and what ends them are learnt.

    Raises:
        DataError: the template refuses the chat, or rewrites earlier turns.
    """
    name, messages = _name(record), record["messages"]
    full = _apply(tokenizer, messages, name)
    learnt = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(tokenizer, messages[:number], name, add_generation_prompt=True)
        end = _end_of_turn(full, before, _apply(tokenizer, messages[: number + 1], name), message["content"])
        if end is None:
            raise DataError(f"{name}: the tokenizer's chat template rewrites earlier turns; only single turns work")
        learnt.append((len(before), end))
    return ChatText(full, learnt)


def exchanges(record: Record) -> list[dict[str, str]]:
    """Return the turns of a chat as instruction records; system messages belong to the first instruction.

    A last turn without an answer is left out: there is nothing in it to learn.

    Raises:
        DataError: user and assistant do not take turns.
    """
    turns = [message for message in record["messages"] if message["role"] != "system"]
    system = [str(message["content"]) for message in record["messages"] if message["role"] == "system"]
    if len(turns) % 2:
        turns = turns[:-1] if turns[-1]["role"] == "user" else turns
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or [turn["role"] for turn in turns] != expected:
        raise DataError(
            f"{_name(record)} is a chat in which user and assistant do not take turns, and this model's tokenizer has "
            "no chat template: use one that has, or leave the record out"
        )
    found: list[dict[str, str]] = []
    for asked, answer in zip(turns[::2], turns[1::2], strict=True):
        parts = [*(system if not found else []), str(asked["content"])]
        found.append({"instruction": "\n".join(part for part in parts if part), "output": str(answer["content"])})
    return found


def as_instructions(turns: list[dict[str, str]], template: PromptTemplate, end: str) -> ChatText:
    """Return the turns of a chat in an instruction template, one behind the other, each answer but the last ended.

    Args:
        end: the text of the end token.
    """
    text = ""
    learnt = []
    for number, turn in enumerate(turns):
        text += template.format(turn)
        begin = len(text)
        text += turn["output"] + (end if number < len(turns) - 1 else "")
        learnt.append((begin, len(text)))
    return ChatText(text, learnt)


def _name(record: Record) -> str:
    """Return how an error names a chat: ids may be of our making, so what it says stands beside it."""
    said = " ".join((first_user_message(record["messages"]) or "").split())
    begins = f" (it begins {said[:_SHOWN]!r}{'...' if len(said) > _SHOWN else ''})" if said else ""
    return f"record {record.get('id')!r}{begins}"


def _end_of_turn(full: str, before: str, after: str, content: Any) -> int | None:
    """Return where an assistant's turn ends in the whole text, None where that does not hold the turn as it was said.

    Args:
        before: the chat up to the turn, with what opens it.
        after: the chat up to the turn's end, as the template writes it where nothing follows.
    """
    if not full.startswith(before):
        return None
    if full.startswith(after):
        return len(after)
    # Some templates (Qwen3's) add to a last answer what earlier ones go without: the content and its end still stand.
    said = str(content).strip()
    start = full.find(said, len(before))
    ending = after[after.rfind(said) + len(said) :]
    return start + len(said) + len(ending) if said in after and full[start:].startswith(said + ending) else None


def _apply(tokenizer: Any, messages: list[dict[str, Any]], name: str, **options: Any) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError as error:  # a template's own raise_exception, too
        raise DataError(f"{name}: the tokenizer's chat template refuses it: {error}") from error
