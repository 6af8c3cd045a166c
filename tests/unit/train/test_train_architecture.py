"""Names and checkpoints held against a model that is known by its configuration alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alpaca_ray.errors import ModelError, SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.architecture import build_skeleton, check_names


def parse(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, list(flags), description="test")


@pytest.fixture
def without_weights(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder with nothing to load but the configuration: what is checked there cannot have read weights."""
    shutil.copy(tiny_llama / "config.json", tmp_path)
    return tmp_path


def adapter(folder: Path, base: Path, *flags: str) -> Path:
    """The adapter that a run with these flags would save, from the library's own code."""
    from transformers import AutoModelForCausalLM

    from alpaca_ray.train.adapter import add_adapter

    add_adapter(parse("--model", str(base), *flags), AutoModelForCausalLM.from_pretrained(base)).save_pretrained(folder)
    return folder


def test_a_skeleton_has_names_and_shapes_but_no_values(without_weights: Path) -> None:
    skeleton = build_skeleton(parse("--model", str(without_weights)), str(without_weights))
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (
            ["--lora_target_modules", "[q_proj,query]"],
            "query: the model has no such layer; it has",
        ),
        (["--lora_target_modules", "[proj]"], "down_proj, embed_tokens, gate_proj, k_proj, o_proj, q_proj, up_proj"),
        (
            ["--full", "--fsdp", "full_shard", "--fsdp_transformer_layer_cls_to_wrap", "OPTDecoderLayer"],
            "OPTDecoderLayer: the model has no such class; it has LlamaDecoderLayer",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_those_that_exist(flags: list[str], part: str, without_weights: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        check_names(parse("--model", str(without_weights), *flags), str(without_weights))
    assert part in str(caught.value)


def test_names_that_exist_pass(without_weights: Path) -> None:
    for flags in (
        ["--lora_target_modules", "[q_proj,model.layers.0.mlp.up_proj]"],
        ["--full", "--fsdp", "full_shard", "--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"],
    ):
        check_names(parse("--model", str(without_weights), *flags), str(without_weights))


def test_nothing_is_built_where_nothing_was_named(tmp_path: Path) -> None:
    check_names(parse("--model", str(tmp_path)), str(tmp_path))
    with pytest.raises(ModelError):
        check_names(parse("--model", str(tmp_path), "--lora_target_modules", "q_proj"), str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--lora_r", "4"], "another model or rank"),
        (["--lora_target_modules", "q_proj"], "which this adapter does not have"),
        (
            ["--lora_target_modules", "[q_proj,v_proj,k_proj]"],
            "it lacks base_model.model.model.layers.0",
        ),
    ],
)
def test_adapter_weights_of_another_shape_or_of_other_layers_are_refused(
    flags: list[str], part: str, tiny_llama: Path, without_weights: Path
) -> None:
    source = ["--model", str(without_weights), "--lora_target_modules", "[q_proj,v_proj]"]
    folder = adapter(without_weights / "adapter", tiny_llama, *source[2:])
    check_names(parse(*source), str(without_weights), resume=folder)
    with pytest.raises(SettingsError) as caught:
        check_names(
            parse(*source[:2], *flags, *([] if "--lora_target_modules" in flags else source[2:])),
            str(without_weights),
            resume=folder,
        )
    assert part in str(caught.value)


def test_an_adapter_of_another_family_is_refused(tiny_opt: Path, without_weights: Path) -> None:
    folder = adapter(without_weights / "adapter", tiny_opt)
    with pytest.raises(SettingsError, match="it is of another model"):
        check_names(parse("--model", str(without_weights)), str(without_weights), resume=folder)


def test_a_whole_checkpoint_of_another_size_is_refused(without_weights: Path) -> None:
    folder = without_weights / "checkpoint-2"
    folder.mkdir()
    shutil.copy(without_weights / "config.json", folder)
    flags = ["--full", "--model", str(without_weights)]
    check_names(parse(*flags), str(without_weights), resume=folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(SettingsError, match="checkpoint of another model: hidden_size is 64 there, 32 in the model"):
        check_names(parse(*flags), str(without_weights), resume=folder)
