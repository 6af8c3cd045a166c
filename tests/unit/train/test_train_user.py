"""What a user meets who gave something that cannot be meant: the dry run, the rank, the hub, the split, the chat."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_ray import cluster, models
from alpaca_ray.errors import DataError, ModelError, SettingsError
from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import chats, dry_run, options
from alpaca_ray.train.adapter import add_adapter
from alpaca_ray.train.architecture import build_skeleton, check_names
from alpaca_ray.train.data import split
from alpaca_ray.train.plan import make_plan


def parse(*flags: object) -> TrainSettings:
    return parse_settings(TrainSettings, [str(flag) for flag in flags], description="test")


def dry_lines(monkeypatch: pytest.MonkeyPatch, settings: TrainSettings, *, cpus: float = 4) -> list[str]:
    """Return the lines of a dry run on a cluster of this machine alone."""
    plan = make_plan(settings, has_gpus=False)
    monkeypatch.setattr(cluster, "node_kinds", lambda: [({"CPU": cpus, "memory": 2.0**40}, 1)])
    bundle = {"CPU": float(plan.cpus_per_worker)}
    records = read_records("seeds")[:20]
    return dry_run.dry_run_lines(settings, plan, STANFORD, records, settings.model_name, bundle)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (
            "--lora_target_modules w_proj",
            "--lora_target_modules w_proj: the model has no such layer; it has down_proj, ",
        ),
        (
            "--full --fsdp full_shard --fsdp_transformer_layer_cls_to_wrap OPTDecoderLayer",
            "_cls_to_wrap OPTDecoderLayer: the model has no such class; it has LlamaDecoderLayer",
        ),
        ("--lora_r 100000", "--lora_r 100000: no layer that gets an adapter has a rank above 32 itself"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    flags: str, part: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError) as caught:
        dry_lines(monkeypatch, parse("--model", tiny_llama, *flags.split()))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_counts_epochs_by_their_steps_and_says_whose_cpus_it_means(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model", tiny_llama, "--batch_size", "8", "--num_train_epochs", "2", "--model_max_length", "4096"]
    settings = parse(*flags, "--cpus_per_worker", "9")
    monkeypatch.setattr(dry_run, "cores", lambda: 2)
    lines = dry_lines(monkeypatch, settings)
    assert "steps: 6 (2.00 epochs of 20 records)" in lines
    assert any(line.startswith("warning: --model_max_length 4096 is beyond the ") for line in lines)
    assert lines[-2] == "the cluster lacks: 9 CPU are needed, and the cluster has 4"
    assert "this machine has 2 CPU cores" in lines[-1]
    assert "counts them as 4" in lines[-1]


def test_cpus_are_explained_for_a_cluster_of_this_machine_alone() -> None:
    two_nodes = [({"CPU": 4.0}, 1), ({"CPU": 8.0}, 1)]
    assert dry_run.logical_cpus(two_nodes, 2) == dry_run.logical_cpus([({"CPU": 4.0}, 3)], 2) == []
    assert dry_run.logical_cpus([({"CPU": 4.0}, 1)], 4) == []
    assert len(dry_run.logical_cpus([({"CPU": 4.0}, 1)], 2)) == 1


def test_a_rank_is_held_against_the_layers_that_get_an_adapter(tiny_llama: Path) -> None:
    for flags in (["--lora_r", "33"], ["--lora_r", "17", "--lora_target_modules", "k_proj"]):
        settings = parse("--model", tiny_llama, *flags)
        with pytest.raises(SettingsError, match=r"--lora_r .*has a rank above"):
            add_adapter(settings, build_skeleton(settings, str(tiny_llama)))
    settings = parse("--model", tiny_llama, "--lora_r", "32", "--lora_target_modules", "k_proj,q_proj")
    add_adapter(settings, build_skeleton(settings, str(tiny_llama)))
    with pytest.raises(SettingsError, match="--lora_r 257"):  # before any weights load
        check_names(parse("--model", tiny_llama, "--lora_r", "257"), str(tiny_llama))


def test_samples_may_be_as_long_as_the_model_has_positions() -> None:
    text = SimpleNamespace(max_position_embeddings=512)
    config: Any = SimpleNamespace(get_text_config=lambda: text)
    assert options.beyond_positions(parse("--model_max_length", "512"), config) == []
    assert len(options.beyond_positions(parse("--model_max_length", "513"), config)) == 1
    del text.max_position_embeddings
    assert options.beyond_positions(parse("--model_max_length", "100000"), config) == []


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize("flag", ["--learning_rate", "--weight_decay", "--num_train_epochs", "--save_steps"])
def test_numbers_are_finite(flag: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{flag} '{value}': must be "):
        parse(f"{flag}={value}")


@pytest.mark.parametrize("words", [["[q_proj,v_proj"], ["q_proj,v_proj]"], ["[q_proj,", "v_proj]"]])
def test_half_a_bracket_is_refused(words: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"--lora_target_modules: .*a bracket without its other half"):
        parse("--lora_target_modules", *words)


def test_one_record_cannot_be_split_and_no_flag_is_blamed_that_was_not_given() -> None:
    with pytest.raises(SettingsError, match=r"^1 record cannot be split .*--val_set_size 0$"):
        split([{"id": "a"}], 0.1, seed=0)


def test_a_chat_that_a_template_refuses_is_named_by_what_it_says() -> None:
    class Refusing:
        chat_template = "x"

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            from jinja2 import TemplateError

            raise TemplateError("no system turns")

    said = "Name three rivers of Asia\nand the seas that each of them ends in."
    turns = [("system", "s"), ("user", said), ("assistant", "b")]
    record = {"id": "1f-0", "messages": [{"role": role, "content": text} for role, text in turns]}
    with pytest.raises(DataError) as caught:
        chats.rendered(record, Refusing())
    named = "record '1f-0' (it begins 'Name three rivers of Asia and the seas that each of them end'...)"
    assert str(caught.value) == f"{named}: the tokenizer's chat template refuses it: no system turns"


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A hub at which nobody listens, an empty cache, and every pause of the hub's library counted as a failure."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(_http.time, "sleep", lambda _: pytest.fail("the hub's library tries again"))
    return address


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(closed_hub: str, tmp_path: Path) -> None:
    for ask in (models.check_reachable, models.load_tokenizer, models.load_config, models.load_model):
        with pytest.raises(ModelError) as caught:
            ask("someone/model", flag="--base_model", cache_dir=str(tmp_path))
        text = str(caught.value)
        assert text.startswith("--base_model someone/model: there is no such folder, it was not downloaded before")
        assert f"the hub at {closed_hub} cannot be reached" in text
        assert "\n" not in text


def test_what_was_downloaded_is_taken_where_the_hub_cannot_be_reached(
    closed_hub: str, tmp_path: Path, tiny_llama: Path
) -> None:
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for file in tiny_llama.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    models.check_reachable("someone/model", cache_dir=str(tmp_path))
    assert models.load_config("someone/model", cache_dir=str(tmp_path)).model_type == "llama"
    assert models.load_tokenizer("someone/model", cache_dir=str(tmp_path)).eos_token == "</s>"
    assert next(models.load_model("someone/model", cache_dir=str(tmp_path)).parameters()).numel()
