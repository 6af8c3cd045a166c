"""The flags of jobs/serve.py, Alpaca-LoRA's among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.serve import ServeArgs, ServeSettings

ROOT = Path(__file__).parents[3]


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


def test_the_jobs_help_names_every_flag_with_its_meaning() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "serve.py"), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "OpenAI-compatible API" in done.stdout
    shown = " ".join(done.stdout.split())
    for name, field in ServeSettings.model_fields.items():
        assert f"--{name} " in shown
        assert field.description, name
        assert field.description in shown, name
    for alias in ("--model", "--adapters", "--config"):
        assert alias in shown


def test_the_shipped_yaml_file_says_what_the_application_understands() -> None:
    content = yaml.safe_load((ROOT / "serve_configs" / "alpaca.yaml").read_text())
    (application,) = content["applications"]
    args = ServeArgs.parse(application["args"])
    assert (args.base_model, args.adapters) == ("embedded", "./out")
    module, _, name = application["import_path"].partition(":")
    program = f"import importlib; assert callable(getattr(importlib.import_module({module!r}), {name!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (content["http_options"]["host"], content["http_options"]["port"]) == ("127.0.0.1", 8000)
