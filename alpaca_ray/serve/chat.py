"""From chat messages to the prompt that a model was trained on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpaca_ray.prompts import STANFORD, PromptTemplate
from alpaca_ray.serve.adapter_folder import AdapterInfo
from alpaca_ray.serve.protocol import ApiError, Message, Prompt


def chat_prompt(
    messages: Sequence[Message], tokenizer: Any, adapter: AdapterInfo | None, default: PromptTemplate | None = None
) -> Prompt:
    """Return the prompt for a conversation: text for an instruction template, token ids for a chat template.

    The order is: what the adapter was trained with, ``default``, the tokenizer's chat template, Stanford's instruction
    template.

    Raises:
        ApiError: the template cannot express the conversation.
    """
    if adapter and adapter.template:
        return _instruction(messages, adapter.template)
    if adapter and adapter.chat_template:
        return _rendered(messages, tokenizer, adapter.chat_template)
    if default:
        return _instruction(messages, default)
    if tokenizer.chat_template:
        return _rendered(messages, tokenizer, None)
    return _instruction(messages, STANFORD)


def _instruction(messages: Sequence[Message], template: PromptTemplate) -> str:
    """Make one instruction of the system messages and the user's; such a template knows no earlier turns."""
    turns = [message for message in messages if message["role"] != "system"]
    if [turn["role"] for turn in turns] != ["user"]:
        raise ApiError(
            "This model answers one instruction and knows no earlier turns: send one user message, and system messages "
            "if you like.",
            param="messages",
            code="unsupported_conversation",
        )
    system = [message["content"] for message in messages if message["role"] == "system"]
    instruction = "\n".join(part for part in [*system, turns[0]["content"]] if part)
    return template.format({"instruction": instruction})


def _rendered(messages: Sequence[Message], tokenizer: Any, template: str | None) -> list[int]:
    import jinja2

    options = {"chat_template": template} if template else {}
    try:
        encoded = tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=True, return_dict=True, **options
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise ApiError(
            f"The model's chat template refuses these messages: {error}", param="messages", code="invalid_value"
        ) from None
    return list(encoded["input_ids"])
