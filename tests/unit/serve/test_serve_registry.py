"""Which adapters are found and under which names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import ModelError, SettingsError, UserError
from alpaca_ray.prompts import ALPACA_LORA
from alpaca_ray.serve.adapter_folder import AdapterInfo, folder_of
from alpaca_ray.serve.registry import build_catalogue, catalogue_of, foreign, scan
from alpaca_ray.settings.serve import ServeArgs


def adapter(folder: Path, **config: Any) -> Path:
    """A folder that looks like an adapter's; the registry opens no weights."""
    folder.mkdir(parents=True)
    content = {"peft_type": "LORA", "base_model_name_or_path": "embedded", "bias": "none", "use_dora": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def names(folder: Path) -> list[str]:
    return [found.name for found in scan(folder).adapters]


def test_one_adapter_or_a_folder_of_them(tmp_path: Path) -> None:
    adapter(tmp_path / "b")
    adapter(tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "b") == ["b"]


def test_no_folder_means_no_adapters(tmp_path: Path) -> None:
    assert scan(None).adapters == []
    assert scan(tmp_path / "missing").adapters == []


def test_one_bad_folder_does_not_keep_the_others_from_being_served(tmp_path: Path) -> None:
    good = adapter(tmp_path / "good")
    adapter(tmp_path / "checkpoint-20")
    adapter(tmp_path / ".hidden")
    (adapter(tmp_path / "half") / "adapter_model.safetensors").unlink()
    (adapter(tmp_path / "broken") / "adapter_config.json").write_text("{")
    adapter(tmp_path / "other-kind", peft_type="IA3")
    (adapter(tmp_path / "pickled") / "adapter_model.safetensors").rename(tmp_path / "pickled" / "adapter_model.bin")
    (adapter(tmp_path / "untemplated") / "prompt_template.json").write_text("[]")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "regen.json").write_text("[]")
    (tmp_path / "full").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "full" / name).write_text("{}")
    (tmp_path / "file").write_text("")
    adapter(tmp_path / "checkpoint-final")
    adapter(tmp_path / "run" / "checkpoint-4")

    catalogue = catalogue_of(ServeArgs(adapters=str(tmp_path)))
    assert catalogue.names == ["embedded", "checkpoint-final", "good"]
    assert good.is_dir()
    for bad, reason in {
        "half": "not finished",
        "broken": "not valid JSON",
        "other-kind": "IA3",
        "pickled": "pickle",
        "untemplated": "prompt_input",
    }.items():
        assert [line for line in catalogue.skipped if f"/{bad}" in line and reason in line], bad
    assert len(catalogue.skipped) == 5
    for bad in ("half", "broken", "other-kind", "pickled", "untemplated"):  # named alone, each is an error
        with pytest.raises(UserError, match=bad):
            catalogue_of(ServeArgs(adapters=str(tmp_path / bad)))


def test_a_runs_output_folder_is_one_adapter_whatever_its_checkpoints(tmp_path: Path) -> None:
    adapter(tmp_path / "out")
    adapter(tmp_path / "out" / "checkpoint-4")
    assert names(tmp_path / "out") == ["out"]
    assert names(tmp_path) == ["out"]


def test_templates_travel_with_the_adapter(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "prompt_template.json").write_text(ALPACA_LORA.to_json())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = scan(folder).adapters[0]
    assert found.template == ALPACA_LORA
    assert found.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
    ],
)
def test_what_rows_cannot_have_each_for_themselves_is_refused(
    tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    with pytest.raises(ModelError, match=word):
        scan(adapter(tmp_path / "a", **config))


def test_names_with_and_without_the_base(tmp_path: Path) -> None:
    catalogue = build_catalogue("org/base", scan(adapter(tmp_path / "red").parent).adapters)
    assert catalogue.names == ["org/base", "red"]
    assert catalogue.find("org/base") is None
    for name in ("red", "org/base:red"):
        found = catalogue.find(name)
        assert found is not None
        assert found.name == "red"
    for name in ("blue", "org/base:blue", "base:red", "", "org/base:", "org/base:org/base"):
        with pytest.raises(KeyError):
            catalogue.find(name)


def test_names_that_collide_are_an_error(tmp_path: Path) -> None:
    def info(name: str, folder: str) -> AdapterInfo:
        return AdapterInfo(name, Path(folder), "base", 0)

    with pytest.raises(SettingsError, match="the base model and /x/base"):
        build_catalogue("base", [info("base", "/x/base")])
    with pytest.raises(SettingsError, match="/x/a and /y/a"):
        build_catalogue("base", [info("a", "/x/a"), info("a", "/y/a")])
    with pytest.raises(SettingsError, match="base:a"):
        build_catalogue("base", [info("a", "/x/a"), info("base:a", "/x/base:a")])


def test_another_base_is_only_a_hint(tmp_path: Path) -> None:
    adapter(tmp_path / "ours")
    adapter(tmp_path / "other", base_model_name_or_path="org/model")
    catalogue = build_catalogue("embedded", scan(tmp_path).adapters)
    assert [found.name for found in foreign(catalogue, ("embedded",))] == ["other"]


def test_arguments_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown key 'adaptors': did you mean 'adapters'"):
        ServeArgs.parse({"adaptors": "x"})
    with pytest.raises(SettingsError, match="max_batch_size 0"):
        ServeArgs.parse({"max_batch_size": 0})
    with pytest.raises(ModelError, match=r"base_model \./nowhere"):
        catalogue_of(ServeArgs(base_model="./nowhere"))
    adapter(tmp_path / "embedded")
    with pytest.raises(SettingsError, match="rename one"):
        catalogue_of(ServeArgs(adapters=str(tmp_path)))
    shutil.rmtree(tmp_path / "embedded")
    assert catalogue_of(ServeArgs(adapters=str(tmp_path))).names == ["embedded"]


def test_an_adapter_that_has_not_changed_is_not_read_again_and_one_that_has_is(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    before = catalogue_of(ServeArgs(adapters=str(tmp_path)))
    same = catalogue_of(ServeArgs(adapters=str(tmp_path)), before)
    assert same.adapters[0] is before.adapters[0]
    for name, content in (
        ("adapter_model.safetensors", "new weights"),
        ("adapter_config.json", '{"peft_type": "LORA"}'),
        ("prompt_template.json", ALPACA_LORA.to_json()),
        ("chat_template.jinja", "{{ messages }}"),
    ):
        (folder / name).write_text(content)
        now = catalogue_of(ServeArgs(adapters=str(tmp_path)), before)
        assert now.adapters[0].load_id != before.adapters[0].load_id, name
        before = now
    assert before.adapters[0].template == ALPACA_LORA
    assert folder_of(before.adapters[0].load_id) == folder
