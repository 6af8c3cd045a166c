"""``export.py ollama``: a model folder that ``ollama create`` takes, with the prompt that the model was trained on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from alpaca_ray.console import say, show_settings
from alpaca_ray.errors import ModelError, SettingsError
from alpaca_ray.export import modelfile, source
from alpaca_ray.export.chat_form import IrregularTemplateError, chat_form
from alpaca_ray.export.model import Origin, find_origin, write_model
from alpaca_ray.export.output import check, staged
from alpaca_ray.export.record import record, say_done
from alpaca_ray.models import load_tokenizer
from alpaca_ray.prompts import PromptTemplate, load_template
from alpaca_ray.serve.adapter_folder import TEMPLATE as PROMPT_TEMPLATE
from alpaca_ray.settings.export import OllamaSettings
from alpaca_ray.storage import resolve_output

MODELFILE = "Modelfile"
_HEADING = """\
Made by alpaca_ray from {name}. In this folder:
ollama create NAME -f Modelfile                        (as it is)
ollama create NAME -f Modelfile --quantize q4_K_M      (smaller)"""


def ollama(settings: OllamaSettings) -> Path:
    """Write the model and its Modelfile, and return the folder.

    Raises:
        ModelError, OutputError, SettingsError, DataError: as a line that says what to do; nothing is written then.
    """
    output = resolve_output(settings.output_dir)
    check(output, overwrite=settings.overwrite)
    given = load_template(settings.prompt_template) if settings.prompt_template else None
    origin = find_origin(adapter=settings.adapter, base_model=settings.base_model, model=settings.model, output=output)
    text, described = _modelfile(origin, given)
    show_settings("export ollama", settings)
    say(f"prompt: {described}")
    with staged(output, overwrite=settings.overwrite, size=origin.size(settings.dtype)) as staging:
        names = write_model(staging, origin, dtype=settings.dtype, max_shard_size=settings.max_shard_size)
        if given:
            (staging / PROMPT_TEMPLATE).write_text(given.to_json(), encoding="utf-8")
            names = sorted({*names, PROMPT_TEMPLATE})
        (staging / MODELFILE).write_text(text, encoding="utf-8")
        record(staging, settings, inputs=origin.described(), outputs=[*names, MODELFILE], base_model=origin.name)
    say_done(output, model_bytes=origin.weights.nbytes)
    say(f"next: cd {output} && ollama create NAME -f {MODELFILE}")
    return output


def _modelfile(origin: Origin, given: PromptTemplate | None) -> tuple[str, str]:
    """Return the Modelfile, and where its prompt comes from: what was given, an instruction template, a chat's."""
    adapter = origin.adapter.folder if origin.adapter else None
    # As it will lie beside the weights: the adapter's own, else the base's.
    with tempfile.TemporaryDirectory() as scratch:
        source.write_config(Path(scratch), source.config_of(origin.folder))
        source.copy_companions(Path(scratch), origin.folder, adapter)
        try:
            tokenizer = load_tokenizer(scratch)
        except ModelError as error:
            raise ModelError(str(error).replace(scratch, str(adapter or origin.name))) from error
        file = Path(scratch, PROMPT_TEMPLATE)
        template = given or (load_template(str(file)) if file.is_file() else None)
    end = [tokenizer.eos_token] if tokenizer.eos_token else []
    heading = _HEADING.format(name=adapter.name if adapter else origin.name)
    if template:
        stops = list(dict.fromkeys([*modelfile.instruction_stops(template), *end]))
        text = modelfile.render_modelfile(modelfile.instruction_template(template), stops, heading=heading)
        return text, "the template that was given" if given else f"{PROMPT_TEMPLATE} of {adapter or origin.name}"
    if not tokenizer.chat_template:
        raise SettingsError(
            f"{origin.name} says nothing about its prompt (no {PROMPT_TEMPLATE}, no chat template): give "
            "--prompt_template, such as alpaca"
        )
    bos = tokenizer.bos_token if _begins_texts(tokenizer) else None
    try:
        form = chat_form(lambda messages, more: _render(tokenizer, messages, more), bos)
    except IrregularTemplateError as error:
        raise ModelError(
            f"{origin.name}: its chat template cannot be said in a Modelfile ({error}): give --prompt_template"
        ) from error
    stops = list(dict.fromkeys([*modelfile.chat_stops(form, bos), *end]))
    template_text = modelfile.chat_template(form)
    return (
        modelfile.render_modelfile(template_text, stops, system=form.default_system, heading=heading),
        "the chat template",
    )


def _begins_texts(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its first token before every text, as Ollama then does, too."""
    return bool(tokenizer.bos_token) and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]


def _render(tokenizer: Any, messages: Any, more: bool) -> str:
    import jinja2

    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=more))
    except (jinja2.TemplateError, TypeError) as error:
        raise IrregularTemplateError(" ".join(str(error).split())) from error
