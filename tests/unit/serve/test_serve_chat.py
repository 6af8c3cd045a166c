"""From messages to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.prompts import ALPACA_LORA, ALPACA_SHORT, STANFORD
from alpaca_ray.serve.adapter_folder import AdapterInfo
from alpaca_ray.serve.chat import chat_prompt
from alpaca_ray.serve.protocol import ApiError
from alpaca_ray.serve.registry import scan

USER = [{"role": "user", "content": "Name a fruit."}]
JINJA = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def info(**templates: Any) -> AdapterInfo:
    return AdapterInfo("a", Path("a"), "base", 0, **templates)


def test_the_adapters_own_template_comes_first(tokenizer: Any) -> None:
    tokenizer.chat_template = JINJA
    adapter = info(template=ALPACA_SHORT, chat_template="other")
    assert chat_prompt(USER, tokenizer, adapter, ALPACA_LORA) == ALPACA_SHORT.format({"instruction": "Name a fruit."})


def test_the_adapters_chat_template_comes_before_the_tokenizers(tokenizer: Any) -> None:
    tokenizer.chat_template = "other"
    prompt = chat_prompt(USER, tokenizer, info(chat_template=JINJA), ALPACA_LORA)
    assert tokenizer.decode(prompt) == "[user]Name a fruit.[assistant]"


def test_a_folder_that_was_trained_on_chat_is_asked_with_its_chat_template(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "chat_template.jinja").write_text(JINJA)
    turns = [*USER, {"role": "assistant", "content": "Pear."}, {"role": "user", "content": "More."}]
    prompt = chat_prompt(turns, tokenizer, scan(tmp_path).adapters[0], ALPACA_LORA)
    assert tokenizer.decode(prompt) == "[user]Name a fruit.[assistant]Pear.[user]More.[assistant]"


def test_the_given_template_comes_before_the_tokenizers(tokenizer: Any) -> None:
    tokenizer.chat_template = JINJA
    assert chat_prompt(USER, tokenizer, info(), ALPACA_LORA) == ALPACA_LORA.format({"instruction": "Name a fruit."})


def test_the_base_uses_its_tokenizers_chat_template_or_stanfords(tokenizer: Any) -> None:
    assert chat_prompt(USER, tokenizer, None) == STANFORD.format({"instruction": "Name a fruit."})
    tokenizer.chat_template = JINJA
    turns = [*USER, {"role": "assistant", "content": "Pear."}, {"role": "user", "content": "More."}]
    assert tokenizer.decode(chat_prompt(turns, tokenizer, None)) == (
        "[user]Name a fruit.[assistant]Pear.[user]More.[assistant]"
    )


def test_system_messages_join_the_instruction(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    assert chat_prompt(messages, tokenizer, None) == STANFORD.format({"instruction": "Be brief.\nName a fruit."})


def test_a_chat_template_that_refuses_is_the_senders_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ApiError, match="roles must alternate"):
        chat_prompt(USER, tokenizer, None)
