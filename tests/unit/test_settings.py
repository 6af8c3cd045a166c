"""Flags, config files and defaults: how they combine, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.base import Settings, setting
from alpaca_ray.settings.cli import parse_settings


class Example(Settings):
    passthrough_field: ClassVar[str | None] = "extra"

    rate: float = setting(0.1, "A rate.", aliases=("speed",), gt=0)
    steps: int | None = setting(None, "Steps.", group="loop")
    packing: bool = setting(True, "Pack, at 100 % always.")
    quiet: bool = setting(False, "Quiet.")
    mode: Literal["no", "steps"] = setting("steps", "When.")
    names: list[str] = setting(["a"], "Names.")
    label: str = setting("x", "A label.")
    extra: dict[str, Any] = setting({}, "Others.")

    @classmethod
    def passthrough_names(cls) -> set[str]:
        return {"adam_beta1", "jit"}

    @classmethod
    def dialect(cls, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return ("fast dialect", {"rate": 9.0}) if given.get("label") == "fast" else ("", {})


def parse(*argv: str) -> Example:
    return parse_settings(Example, argv, description="An example.")


def test_defaults_and_sources() -> None:
    settings = parse()
    assert settings.rate == 0.1
    assert settings.source("rate") == "default"
    assert settings.describe() == []


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--quiet"], True),
        (["--quiet", "True"], True),
        (["--quiet=true"], True),
        (["--quiet", "1"], True),
        (["--quiet", "False"], False),
        (["--no_quiet"], False),
        (["--noquiet"], False),
        (["--no-quiet"], False),
    ],
)
def test_both_ways_of_writing_booleans(argv: list[str], expected: bool) -> None:
    assert parse(*argv).quiet is expected


def test_negation_of_a_default_that_is_true() -> None:
    assert parse("--no_packing").packing is False


@pytest.mark.parametrize("argv", [["--names", "b", "c"], ["--names", "[b,c]"], ["--names=['b', 'c']"]])
def test_both_ways_of_writing_lists(argv: list[str]) -> None:
    assert parse(*argv).names == ["b", "c"]


def test_alias_and_hyphens() -> None:
    assert parse("--speed", "2").rate == 2
    assert parse("--no-packing").packing is False


def test_config_below_flags_above_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("speed: 1e-3\nsteps: 5\nmode: no\nnames: [p, q]\nadam_beta1: 0.5\n")
    settings = parse("--config", str(path), "--steps", "7")
    assert (settings.rate, settings.steps, settings.mode, settings.names) == (1e-3, 7, "no", ["p", "q"])
    assert settings.extra == {"adam_beta1": 0.5}
    assert settings.source("steps") == "flag"
    assert settings.source("rate") == f"config {path}"
    assert settings.was_given("rate")


def test_dialect_defaults_lose_against_what_was_given() -> None:
    assert parse("--label", "fast").rate == 9
    assert parse("--label", "fast").source("rate") == "fast dialect default"
    assert not parse("--label", "fast").was_given("rate")
    assert parse("--label", "fast", "--rate", "3").rate == 3


def test_none_and_passthrough() -> None:
    assert parse("--steps", "None").steps is None
    assert parse("--adam_beta1", "0.8", "--jit").extra == {"adam_beta1": 0.8, "jit": True}
    assert parse("--adam_beta1", "1e-8").extra == {"adam_beta1": 1e-8}
    assert parse("--adam_beta1=3", "--jit", "false").extra == {"adam_beta1": 3, "jit": False}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stepz", "3"], r"unknown flag --stepz: did you mean --steps\?"),
        (["--frobnicate"], r"unknown flag --frobnicate"),
        (["--steps", "many"], r"--steps 'many': must be an integer$"),
        (["--rate", "-1"], r"--rate '-1': must be greater than 0"),
        (["--mode", "sometimes"], r"--mode 'sometimes': must be 'no' or 'steps'"),
        (["--quiet", "perhaps"], r"--quiet 'perhaps': must be a .*boolean"),
        (["--rate", "1", "--speed", "2"], r"--rate and --speed are the same setting"),
        (["stray"], r"unexpected argument 'stray'"),
        (["--config", "nowhere.yaml"], r"--config nowhere\.yaml: No such file"),
        (["--steps"], r"expected one argument"),
    ],
)
def test_bad_flags(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        parse(*argv)
    assert "\n" not in str(raised.value)


def test_a_range_in_a_config_is_no_number_in_base_60(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("names: [2:8]\nsteps: 0x10")
    read = parse("--config", str(path))
    assert (read.names, read.steps) == (["2:8"], 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", r"unknown setting 'stepz': did you mean 'steps'\?"),
        ("steps: many", r"c\.yaml: steps 'many': must be"),
        ("- a", r"must hold settings"),
        ("a: [", r"line 1: not valid YAML|line 2: not valid YAML"),
        ("steps: 1\nsteps: 2", r"line 2: steps stands twice"),
        ("rate: 1\nspeed: 2", r"rate and speed are the same setting"),
    ],
)
def test_bad_configs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        parse("--config", str(path))


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in ("--rate", "--speed", "--steps", "--packing", "--quiet", "--mode", "--names", "--config"):
        assert name in text
    assert "at 100 % always. Default: True." in text
