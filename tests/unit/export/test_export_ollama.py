"""Modelfiles: what Ollama would send is what the model's own template renders.

Ollama itself is not at hand: its template language is interpreted here, as far as Modelfiles of ours use it, and its
loop over the turns of a conversation is written as its documentation describes it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from export_support import logits, make_adapter
from transformers import AutoTokenizer

from alpaca_ray.errors import ModelError, SettingsError
from alpaca_ray.export.ollama import ollama
from alpaca_ray.prompts import ALPACA_LORA, ALPACA_SHORT, STANFORD, TEMPLATES, PromptTemplate
from alpaca_ray.settings.export import OllamaSettings


def run(output: Path, **settings: Any) -> Path:
    return ollama(OllamaSettings(output_dir=str(output), **{name: str(value) for name, value in settings.items()}))


def directives(folder: Path) -> tuple[str, str | None, list[str]]:
    """Return template, system text and stops of a Modelfile."""
    text = (folder / "Modelfile").read_text()
    assert re.search(r"^FROM \.$", text, re.MULTILINE)
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    system = re.search(r'^SYSTEM """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    assert template
    return template[1], system[1] if system else None, re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)


def go(template: str, values: dict[str, str]) -> str:
    """Render a Go template: values, texts, and ``if`` with ``else`` that are not nested."""
    output, shown, condition = "", True, False
    for text, action in re.findall(r"(.*?)(?:\{\{ (.*?) \}\}|$)", template, re.DOTALL):
        output += text if shown else ""
        if action.startswith("if ."):
            shown = condition = bool(values[action.removeprefix("if .")])
        elif action == "else":
            shown = not condition
        elif action == "end":
            shown = True
        elif shown and action:
            output += action[1:-1] if action.startswith('"') else values[action.removeprefix(".")]
    return output


def conversation(template: str, system: str | None, turns: list[str]) -> str:
    """Render each turn, the system message in the first; the last ends where its answer begins."""
    text = ""
    for number in range(0, len(turns), 2):
        values = {"System": (system or "") if number == 0 else "", "Prompt": turns[number]}
        if number + 1 < len(turns):
            text += go(template, {**values, "Response": turns[number + 1]})
        else:
            text += go(template.partition("{{ .Response }}")[0], values)
    return text


CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = '<<SYS>>\\n' + "
    "messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + "
    "m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + "
    "m['content'] + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
FORMS = {
    "ChatML": (CHATML, ["<|im_end|>", "<|im_start|>", "</s>"]),
    "Llama 3": (LLAMA_3, ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "</s>"]),
    "Gemma": (GEMMA, ["<end_of_turn>", "<start_of_turn>", "</s>"]),
    "Zephyr": (ZEPHYR, ["</s>", "<|user|>"]),
}


def with_template(model: Path, folder: Path, chat: str | None) -> Path:
    shutil.copytree(model, folder)
    if chat:
        (folder / "chat_template.jinja").write_text(chat)
    return folder


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("length", [1, 3, 5])
def test_ollama_would_send_what_the_chat_template_renders(
    name: str, length: int, tiny_llama: Path, tmp_path: Path
) -> None:
    chat, stops = FORMS[name]
    folder = run(tmp_path / "out", model=with_template(tiny_llama, tmp_path / "model", chat))
    template, system, found = directives(folder)
    assert found == stops
    assert system == ("Be kind." if name == "ChatML" else None)
    turns = ["Hello\n\nyou", "Hi {{ .Prompt }}", "What is {x}?", "Nothing.", "Why?"][:length]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for given in (None, "Answer in one word.") if name != "Gemma" else (None,):
        messages = [{"role": "system", "content": given}] if given else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # This tokenizer puts <s> before every text, and Ollama's would: it is not for the template to say.
        assert conversation(template, given or system, turns) == expected.removeprefix("<s>")
    assert (logits(folder) == logits(tiny_llama)).all()


@pytest.mark.parametrize("chat", [LLAMA_2, "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "{{ 1 +"])
def test_what_a_modelfile_cannot_say_is_refused(chat: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = with_template(tiny_llama, tmp_path / "model", chat)
    if chat == LLAMA_2:  # its turns are all of one form, with the system message inside the first
        template, _, stops = directives(run(tmp_path / "out", model=model))
        # The space before an answer is left out: the model's own first token brings it.
        assert conversation(template, "S", ["a", "b", "c"]) == (
            "[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST]b </s><s>[INST] c [/INST]"
        )
        assert stops == ["</s>", "[INST]"]
        return
    with pytest.raises(ModelError, match=r"its chat template cannot be said in a Modelfile .* give --prompt_template"):
        run(tmp_path / "out", model=model)
    assert not (tmp_path / "out").exists()
    assert directives(run(tmp_path / "out", model=model, prompt_template="alpaca"))[2][0] == "### Instruction:"


@pytest.mark.parametrize("template", [STANFORD, ALPACA_LORA, ALPACA_SHORT])
def test_an_adapter_brings_the_instruction_template_it_was_trained_with(
    template: PromptTemplate, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    (adapter / "prompt_template.json").write_text(template.to_json())
    folder = run(tmp_path / "out", adapter=adapter, dtype="bfloat16")
    text, system, stops = directives(folder)
    prompt = "List {{ three }} things"
    assert conversation(text, None, [prompt]) == template.format({"instruction": prompt})
    assert conversation(text, "Be brief.", [prompt]) == template.format({"instruction": f"Be brief.\n{prompt}"})
    assert system is None
    assert stops == ["### Instruction:", "### Input:", "### Response:", "</s>"]
    assert (logits(folder) - logits(tiny_llama, adapter)).abs().max() < 0.1
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["command"] == "ollama"
    assert {*manifest["outputs"], "run.json"} == {path.name for path in folder.iterdir()}


def test_an_adapter_brings_the_chat_template_and_the_tokenizer_it_was_trained_with(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """As the trainer leaves its folder after training on chats: no prompt template, a tokenizer of its own."""
    base = with_template(tiny_llama, tmp_path / "base", CHATML)
    adapter = make_adapter(base, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = ZEPHYR
    tokenizer.save_pretrained(adapter)
    folder = run(tmp_path / "out", adapter=adapter)
    template, system, stops = directives(folder)
    assert conversation(template, system, ["a"]) == "<|user|>\na</s>\n<|assistant|>\n"
    assert stops == FORMS["Zephyr"][1]
    assert AutoTokenizer.from_pretrained(folder).chat_template == ZEPHYR


def test_braces_of_a_template_are_text(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    content = {"prompt_input": "{{{{a}}}} {instruction} {input}", "prompt_no_input": "{{{{a}}}} Q: {instruction}\nA:"}
    file.write_text(json.dumps({**content, "response_split": "A:"}))
    template, _, stops = directives(run(tmp_path / "out", model=tiny_llama, prompt_template=file))
    assert conversation(template, None, ["x"]) == "{{a}} Q: x\nA:"
    assert stops == ["A:", "</s>"]


def test_a_model_that_says_nothing_of_its_prompt_needs_one(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="says nothing about its prompt"):
        run(tmp_path / "out", model=tiny_llama)
    file = tmp_path / "quotes.json"
    file.write_text(json.dumps({"prompt_input": '"""{instruction}{input}', "prompt_no_input": '"""{instruction}'}))
    with pytest.raises(SettingsError, match="which a Modelfile cannot quote"):
        run(tmp_path / "out", model=tiny_llama, prompt_template=file)
    assert not (tmp_path / "out").exists()
    folder = run(tmp_path / "out", model=tiny_llama, prompt_template="stanford")
    assert json.loads((folder / "prompt_template.json").read_text()) == json.loads(TEMPLATES["stanford"].to_json())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "give --model or --adapter, one of them"),
        ({"model": "a", "adapter": "b"}, "give --model or --adapter, one of them"),
        ({"model": "a", "base_model": "b"}, "--base_model belongs to --adapter"),
        ({"model": "a", "max_shard_size": "5"}, "--max_shard_size '5': must be a size"),
        ({"model": "a", "dtype": "int8"}, "--dtype 'int8': must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        OllamaSettings.resolve({"output_dir": "out", **settings})
    assert text in str(caught.value)


def test_types_are_converted_without_an_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = run(tmp_path / "out", model=tiny_llama, prompt_template="alpaca", dtype="float16")
    before, after = (load_file(where / "model.safetensors") for where in (tiny_llama, folder))
    assert all(torch.equal(after[name], value.half()) for name, value in before.items())
