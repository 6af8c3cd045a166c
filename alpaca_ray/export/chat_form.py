"""What stands around the turns of a conversation: read off a chat template by rendering it, and proven. Pure.

Jinja can say anything; what the templates of ChatML, Llama, Gemma, Zephyr, Phi and their like do say is a fixed text
before and behind each turn, which is all that simpler template languages can express.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Render = Callable[[Sequence[Mapping[str, str]], bool], str]

_SYSTEM, _USER, _ANSWER = "Qsystemq", "Quserq", "Qanswerq"


class IrregularTemplateError(ValueError):
    """A chat template that does more than put fixed texts around turns."""


@dataclass(frozen=True)
class ChatForm:
    """Fixed texts around turns.

    A first turn with a system message is ``system_start`` + system + ``system_end`` + user + ``user_end``, any other
    ``user_start`` + user + ``user_end``; an answer behind it stands between ``answer_start`` (white space,
    which a model that answers writes itself) and ``answer_end``. ``system_start`` is None where the template takes no
    system message. ``default_system`` is what it says where none is given.
    """

    user_start: str
    user_end: str
    answer_end: str
    answer_start: str = ""
    system_start: str | None = None
    system_end: str = ""
    default_system: str | None = None

    def render(self, system: str | None, turns: Sequence[str]) -> str:
        """Return a conversation of user and assistant turns, up to where the next answer begins."""
        system = system or self.default_system
        if system is None or self.system_start is None:
            text = self.user_start
        else:
            text = self.system_start + system + self.system_end
        for number, turn in enumerate(turns):
            if number % 2 == 0:
                text += (self.user_start if number else "") + turn + self.user_end
            else:
                text += self.answer_start + turn + self.answer_end
        return text


def chat_form(render: Render, bos: str | None = None) -> ChatForm:
    """Return the form of a chat template.

    Args:
        render: returns the text of messages; the second argument asks for what an answer begins with.
        bos: the token that the tokenizer itself puts before every text; left out of the form.

    Raises:
        IrregularTemplateError: the template is of no such form.
    """
    head, user_end = _around(render(_messages(None, [_USER]), True), _USER)
    _, middle, answer_end = _around(render(_messages(None, [_USER, _ANSWER]), False), _USER, _ANSWER)
    answer_start = middle.removeprefix(user_end)
    if not middle.startswith(user_end) or answer_start.strip():
        raise IrregularTemplateError("an answer begins in one way when it is asked for and in another afterwards")
    _, _, between, _ = _around(
        render(_messages(None, [_USER, _ANSWER, _USER + "2"]), True), _USER, _ANSWER, _USER + "2"
    )
    if not between.startswith(answer_end):
        raise IrregularTemplateError("an answer ends in one way at the end and in another within a conversation")
    user_start = between.removeprefix(answer_end)
    system_start, system_end, default = None, "", None
    try:
        with_system = render(_messages(_SYSTEM, [_USER]), True)
    except ValueError:
        with_system = ""  # the template refuses system messages, as Gemma's does
    if _SYSTEM in with_system:
        system_start, system_end, _ = _around(with_system, _SYSTEM, _USER)
        if head != user_start and head.startswith(system_start) and head.endswith(system_end):
            default = head[len(system_start) : len(head) - len(system_end)]
    if bos:
        head, system_start = head.removeprefix(bos), system_start.removeprefix(bos) if system_start else system_start
        if user_start.startswith(bos):  # before every turn, and the first is the tokenizer's
            user_start, answer_end = user_start.removeprefix(bos), answer_end + bos
    form = ChatForm(user_start, user_end, answer_end, answer_start, system_start, system_end, default)
    _prove(form, render, bos or "")
    return form


def _prove(form: ChatForm, render: Render, bos: str) -> None:
    """Check the form on longer conversations than it was read off, with texts of several lines."""
    turns = ["one\n\ntwo", "three", "four {x} <five>", "six.\nseven", "eight"]
    for system in (None, "nine\nten") if form.system_start is not None else (None,):
        for length in (1, 3, 5):
            expected = render(_messages(system, turns[:length]), True)
            found = form.render(system, turns[:length])
            if expected not in (found, bos + found):
                raise IrregularTemplateError("it does more than put fixed texts around turns")


def _messages(system: str | None, turns: Sequence[str]) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return first + [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]


def _around(text: str, *contents: str) -> list[str]:
    """Return the texts before, between and behind contents that stand in ``text`` once each, in this order."""
    pieces, rest = [], text
    for content in contents:
        before, found, rest = rest.partition(content)
        if not found:
            raise IrregularTemplateError("it leaves out or changes what a turn says")
        pieces.append(before)
    return [*pieces, rest]
