"""Whether a chat record has the shape that every chat needs, whatever the model. Pure."""

from __future__ import annotations

from typing import Any

from alpaca_ray.errors import DataError

# Who may speak: the names that chat templates know.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def check_messages(messages: Any, where: str, *, need_answer: bool) -> None:
    """Check the ``messages`` of a record.

    Args:
        where: begins the text of an error.
        need_answer: refuse, too, what there is nothing to learn from: an unknown role, a chat without a turn of the
            assistant, or without one of the user before it.

    Raises:
        DataError: it is no list of messages with role and content, or has not what is needed.
    """
    if not isinstance(messages, list):
        raise DataError(f"{where}: 'messages' must be a list")
    for number, message in enumerate(messages):
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise DataError(f"{where}: message {number} needs 'role' and 'content', both texts")
        if need_answer and message["role"] not in ROLES:
            raise DataError(f"{where}: message {number} has the role {message['role']!r}; known are {', '.join(ROLES)}")
    if not need_answer:
        return
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise DataError(f"{where}: the chat has no message of the role 'assistant': there is nothing in it to learn")
    if "user" not in roles[: roles.index("assistant")]:
        raise DataError(f"{where}: the chat has no message of the role 'user' before the assistant's first")
