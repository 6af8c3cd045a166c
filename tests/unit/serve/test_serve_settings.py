"""The flags of jobs/serve.py, Alpaca-LoRA's among them."""

from __future__ import annotations

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.serve import ServeArgs, ServeSettings


def parse(*arguments: str) -> ServeSettings:
    return parse_settings(ServeSettings, list(arguments), description="serve")


def test_alpaca_loras_flags_parse() -> None:
    settings = parse(
        "--load_8bit", "--base_model", "org/llama", "--lora_weights", "some/lora", "--prompt_template", "alpaca_short",
        "--server_name", "0.0.0.0", "--share_gradio", "False",
    )  # fmt: skip
    args = settings.to_args()
    assert (args.base_model, args.adapters, args.load_8bit) == ("org/llama", "some/lora", True)
    assert (args.prompt_template, settings.server_name) == ("alpaca_short", "0.0.0.0")


def test_the_defaults_listen_on_this_machine_only_and_agree_with_the_yaml_files() -> None:
    settings = parse()
    assert (settings.server_name, settings.server_port) == ("127.0.0.1", 8000)
    assert settings.to_args() == ServeArgs()


def test_the_page_that_does_not_exist_is_not_promised() -> None:
    with pytest.raises(SettingsError, match="--share_gradio: the web page is not part of this version"):
        parse("--share_gradio")


def test_wrong_flags_are_named() -> None:
    with pytest.raises(SettingsError, match="--server_port"):
        parse("--server_port", "0")
    with pytest.raises(SettingsError, match="unknown flag --lora_weight"):
        parse("--lora_weight", "x")
