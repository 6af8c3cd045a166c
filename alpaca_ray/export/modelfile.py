"""A Modelfile: what Ollama puts around a prompt, and where an answer ends. Pure.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md. ``TEMPLATE`` is a Go template over ``.System``,
``.Prompt`` and ``.Response``; Ollama renders it once a turn and joins the turns, with a system message in the first.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

from alpaca_ray.errors import SettingsError
from alpaca_ray.export.chat_form import ChatForm
from alpaca_ray.prompts import PromptTemplate

_PROMPT, _RESPONSE = "{{ .Prompt }}", "{{ .Response }}"
_SPECIAL = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


def instruction_template(template: PromptTemplate) -> str:
    """Return the Go template of an instruction template; a system message stands before the instruction.

    Ollama knows no input beside the prompt: the form without one is used.
    """
    mark = "\0"
    before, _, behind = template.format({"instruction": mark}).partition(mark)
    system = "{{ if .System }}{{ .System }}\n{{ end }}"
    return f"{_literal(before)}{system}{_PROMPT}{_literal(behind.replace(mark, ''))}{_RESPONSE}\n\n"


def instruction_stops(template: PromptTemplate) -> list[str]:
    """Return the headings of an instruction template, which a model may go on with after its answer."""
    found = []
    for text, field, _, _ in string.Formatter().parse(template.prompt_input):
        lines = text.strip().splitlines()
        if lines and field is not None:
            found.append(lines[-1].strip())
    found.append(template.response_split.strip())
    return _once(text for text in found if text and (text.endswith(":") or text[0] in "#<[|"))


def chat_template(form: ChatForm) -> str:
    """Return the Go template of a chat template's form; ``answer_start`` is for the model to write."""
    user_start, user_end = _literal(form.user_start), _literal(form.user_end)
    if form.system_start is None:  # said before the first prompt, then
        start = user_start + "{{ if .System }}{{ .System }}\n\n{{ end }}"
    else:
        system = f"{_literal(form.system_start)}{{{{ .System }}}}{_literal(form.system_end)}"
        start = f"{{{{ if .System }}}}{system}{{{{ else }}}}{user_start}{{{{ end }}}}"
    return f"{start}{_PROMPT}{user_end}{_RESPONSE}{_literal(form.answer_end)}"


def chat_stops(form: ChatForm, bos: str | None) -> list[str]:
    """Return the tokens that end an answer or begin the next turn."""
    found = _SPECIAL.findall(form.answer_end) + _SPECIAL.findall(form.user_start)
    return _once(text for text in found or [form.user_start.strip()] if text and text != bos)


def render_modelfile(template: str, stops: Sequence[str], *, system: str | None = None, heading: str = "") -> str:
    """Return the content of a Modelfile for the model in its own folder.

    Raises:
        SettingsError: a text holds three quotes in a row, which a Modelfile cannot quote.
    """
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += ["FROM .", f"TEMPLATE {_quoted(template)}"]
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f'PARAMETER stop "{stop}"' if '"' not in stop else f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _literal(text: str) -> str:
    """Return text as it stands in a Go template, where two opening braces would begin an action."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    if '"""' in text:
        raise SettingsError('the prompt template holds """, which a Modelfile cannot quote: give --prompt_template')
    return f'"""{text}"""'


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
