"""Whole training runs of tiny models under Ray Train, on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alpaca_ray.errors import OutputError, SettingsError
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.progress import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def run(*flags: str | Path) -> dict[str, Any]:
    from alpaca_ray.train.runner import train

    result = train(parse_settings(TrainSettings, [str(flag) for flag in flags], description="test"))
    assert result is not None
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short records in Stanford's form."""
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:40]
    path = tmp_path_factory.mktemp("data") / "alpaca_data.json"
    path.write_text(json.dumps([{k: r[k] for k in ("instruction", "input", "output")} for r in records]))
    return path


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder) if "loss" in row]


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(folder.glob("*model.safetensors")))


@pytest.fixture(scope="module")
def lora_flags(tiny_llama: Path, data: Path) -> list[str]:
    """A LoRA run without anything random but its start, so that two runs can be compared."""
    text = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 6 --no_bf16 --lora_dropout 0 --logging_steps 1 "
        "--learning_rate 0.02 --batch_size 4 --max_steps 6 --save_steps 3 --save_total_limit 9 --threads 1"
    )
    return text.split()


@pytest.fixture(scope="module")
def lora_run(ray_cluster: None, lora_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "out"
    run(*lora_flags, "--per_device_train_batch_size", "4", "--output_dir", folder)
    return folder


def test_lora_lowers_the_loss_and_leaves_a_complete_folder(lora_run: Path, tiny_llama: Path) -> None:
    content = json.loads((lora_run / "run.json").read_text())
    assert content["validation_loss_after"] < content["validation_loss_before"] - 0.01
    assert (content["mode"], content["packing"], content["base_model"]) == ("lora", "borders", str(tiny_llama))
    assert 0 < content["trainable_parameters"] < content["parameters"]
    names = {path.name for path in lora_run.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "prompt_template.json"}
    assert names >= {"train_settings.yaml", "metrics.jsonl", "loss.png", "heldout_ids.json", "checkpoint-6"}
    assert not [name for name in names if name.startswith(".")]
    assert len(json.loads((lora_run / "heldout_ids.json").read_text())) == 6
    rows = read_metrics(lora_run)
    assert rows[0]["step"] == 0
    assert rows[0]["eval_loss"] == content["validation_loss_before"]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert all(row["tokens_per_second"] > 0 for row in rows if "loss" in row)


def test_a_finished_run_is_left_as_it_is(
    lora_run: Path, lora_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in lora_run.iterdir()}
    run(*lora_flags, "--per_device_train_batch_size", "4", "--output_dir", lora_run, "--resume")
    assert "6 steps are done: nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in lora_run.iterdir() if path.name != ".lock"} == before


def test_plain_peft_loads_the_adapter_and_it_gives_the_reported_validation_loss(
    lora_run: Path, tiny_llama: Path, data: Path
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    from alpaca_ray.prompts import STANFORD
    from alpaca_ray.train.encode import encode

    model = AutoPeftModelForCausalLM.from_pretrained(lora_run).eval()
    tokenizer = AutoTokenizer.from_pretrained(lora_run)
    held = set(json.loads((lora_run / "heldout_ids.json").read_text()))
    records = [record for record in read_records(str(data)) if record["id"] in held]
    total = count = 0.0
    for sample in encode(records, tokenizer, STANFORD, max_length=512):
        labels = torch.tensor([sample["labels"]])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([sample["input_ids"]]), labels=labels).loss
        learnt = int((labels[:, 1:] != -100).sum())
        total, count = total + loss.item() * learnt, count + learnt
    content = json.loads((lora_run / "run.json").read_text())
    assert total / count == pytest.approx(content["validation_loss_after"], abs=1e-4)


def test_two_workers_take_the_same_steps_as_one(lora_run: Path, lora_flags: list[str], tmp_path: Path) -> None:
    content = run(*lora_flags, "--per_device_train_batch_size", "2", "--num_workers", "2", "--output_dir", tmp_path)
    assert content["wrapper"] == "DistributedDataParallel"
    assert losses(tmp_path) == pytest.approx(losses(lora_run), abs=1e-4)
    one = json.loads((lora_run / "run.json").read_text())
    for name in ("validation_loss_before", "validation_loss_after"):
        assert content[name] == pytest.approx(one[name], abs=1e-4)


def test_padded_batches_and_accumulation_give_the_same_losses(
    lora_run: Path, lora_flags: list[str], tmp_path: Path
) -> None:
    content = run(*lora_flags, "--no_packing", "--micro_batch_size", "1", "--output_dir", tmp_path)
    assert content["packing"] == "none"
    assert losses(tmp_path) == pytest.approx(losses(lora_run), abs=1e-4)


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    lora_run: Path, lora_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    interrupted = tmp_path / "out"
    interrupted.mkdir()
    shutil.copytree(lora_run / "checkpoint-3", interrupted / "checkpoint-3")
    shutil.copy(lora_run / "metrics.jsonl", interrupted)
    flags = [*lora_flags, "--per_device_train_batch_size", "4", "--output_dir", interrupted]
    with pytest.raises(OutputError, match=r"already holds .*--resume.*--overwrite"):
        run(*flags)
    content = run(*flags, "--resume")
    assert f"Restarting from {interrupted / 'checkpoint-3'}" in capsys.readouterr().out
    undisturbed = weights_of(lora_run)
    for name, weight in weights_of(interrupted).items():
        assert torch.equal(weight, undisturbed[name]), name
    assert losses(interrupted) == losses(lora_run)
    assert (
        content["validation_loss_before"] == json.loads((lora_run / "run.json").read_text())["validation_loss_before"]
    )


@pytest.mark.parametrize("kind", ["safetensors", "adapter_model.bin"])
def test_adapter_weights_alone_are_a_checkpoint_too(
    kind: str, lora_run: Path, lora_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    alone = tmp_path / "weights"
    alone.mkdir()
    if kind == "safetensors":
        shutil.copy(lora_run / "adapter_model.safetensors", alone)
    else:
        torch.save(weights_of(lora_run), alone / kind)
    flags = [*lora_flags, "--max_steps", "1", "--output_dir", tmp_path / "out", "--resume_from_checkpoint", alone]
    content = run(*flags)
    assert f"Restarting from {alone}" in capsys.readouterr().out
    before = json.loads((lora_run / "run.json").read_text())["validation_loss_after"]
    assert content["validation_loss_before"] == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("workers", [1, 2])
def test_stanfords_command_trains_opt_in_full_under_fsdp2(
    workers: int, tiny_opt: Path, data: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    flags = (
        f"--model_name_or_path {tiny_opt} --data_path {data} --bf16 True --output_dir {tmp_path} --num_train_epochs 1 "
        "--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --gradient_accumulation_steps 2 "
        "--evaluation_strategy no --save_strategy steps --save_steps 2000 --save_total_limit 1 --learning_rate 5e-3 "
        "--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 "
        f"--fsdp_transformer_layer_cls_to_wrap OPTDecoderLayer --tf32 True --num_workers {workers}"
    ).split()
    content = run(*flags, "--fsdp", "full_shard auto_wrap")
    assert content["mode"] == "full"
    assert content["wrapper"] == "FSDPOPTForCausalLM"
    assert content["trainable_parameters"] == content["parameters"]
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token == "[PAD]"
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 513
    base = AutoModelForCausalLM.from_pretrained(tiny_opt)
    name = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(model.state_dict()[name], base.state_dict()[name])
    assert model.config.use_cache


def test_alpaca_loras_command_trains_on_an_8_bit_base(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    flags = (
        f"--base_model {tiny_llama} --data_path {data} --output_dir {tmp_path} --batch_size 8 --micro_batch_size 4 "
        "--num_epochs 2 --learning_rate 1e-2 --cutoff_len 512 --val_set_size 8 --lora_r 8 --lora_alpha 16 "
        "--lora_dropout 0.05 --lora_target_modules [q_proj,v_proj] --train_on_inputs --group_by_length --warmup_steps 1"
    ).split()
    content = run(*flags)
    assert content["adapted_layers"] == ["Linear8bitLt"]
    assert (content["precision"], content["packing"]) == ("bf16", "none")
    assert content["validation_loss_after"] < content["validation_loss_before"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] == str(tiny_llama)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path).peft_config["default"].r == 8


def test_lora_on_a_4_bit_base_in_stanfords_dialect(tiny_opt: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", tiny_opt, "--data_path", data, "--output_dir", tmp_path, "--load_4bit"]
    content = run(*flags, "--max_steps", "2", "--bf16")
    assert (content["mode"], content["adapted_layers"]) == ("lora", ["Linear4bit"])


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (
            ["--lora_target_modules", "q_proj,nothing"],
            "--lora_target_modules nothing: the model has no such layer; it has",
        ),
        (["--full", "--fsdp", "full_shard", "--fsdp_transformer_layer_cls_to_wrap", "OPTDecoderLayer"], "LlamaDecoder"),
    ],
)
def test_an_error_in_a_worker_comes_out_as_ours_and_leaves_no_folder(
    flags: list[str], part: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(SettingsError) as caught:
        run("--model", tiny_llama, "--data_path", data, "--output_dir", folder, *flags)
    assert part in str(caught.value)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(SettingsError):
        run("--model", tiny_llama, "--data_path", data, "--output_dir", folder, *flags)
    assert not any(folder.iterdir())


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_overwriting_with_what_a_worker_refuses_keeps_the_old_run(
    lora_run: Path, lora_flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(lora_run, folder)
    before = contents(folder)
    with pytest.raises(SettingsError, match="no such layer"):
        run(*lora_flags, "--output_dir", folder, "--overwrite", "--lora_target_modules", "nothing")
    assert contents(folder) == before
    with pytest.raises(OutputError, match="--seed: 42 there, 7 now"):
        run(*lora_flags, "--output_dir", folder, "--resume", "--seed", "7")
    assert contents(folder) == before
    with pytest.raises(SettingsError, match="lies in --output_dir"):
        run(*lora_flags, "--output_dir", folder, "--overwrite", "--resume_from_checkpoint", folder / "checkpoint-3")
    assert contents(folder) == before


def test_a_restart_without_a_checkpoint_writes_its_metrics_anew(
    lora_run: Path, lora_flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(lora_run, folder, ignore=shutil.ignore_patterns("checkpoint-*", "*.safetensors", "run.json"))
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 7, "lo')
    run(*lora_flags, "--output_dir", folder, "--resume", "--max_steps", "2")
    text = (folder / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [0, 1, 2, 2]


def test_what_only_saw_chats_is_published_without_a_prompt_template(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer.save_pretrained(base)
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
    file = tmp_path / "chats.json"
    flags = ["--model", base, "--data_path", file, "--max_steps", "1", "--val_set_size", "0", "--threads", "1"]
    file.write_text(json.dumps([{"messages": talk}] * 4))
    assert run(*flags, "--output_dir", tmp_path / "chat")["prompt_template"] is None
    assert (tmp_path / "chat" / "chat_template.jinja").is_file()
    assert not (tmp_path / "chat" / "prompt_template.json").exists()
    file.write_text(json.dumps([{"messages": talk}, {"instruction": "Say hi.", "output": "hi"}]))
    run(*flags, "--output_dir", tmp_path / "mixed")
    assert (tmp_path / "mixed" / "prompt_template.json").is_file()


def test_held_out_records_that_are_all_too_long_only_cost_the_validation_loss(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alpaca_ray.train.data import split

    short = [{"id": f"r{number}", "instruction": "Say hi.", "output": "hi"} for number in range(6)]
    held = {record["id"] for record in split(short, 2, seed=42)[1]}
    records = [{**record, "instruction": "word " * 400} if record["id"] in held else record for record in short]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    flags = ["--model", tiny_llama, "--data_path", file, "--max_steps", "1", "--val_set_size", "2", "--threads", "1"]
    content = run(*flags, "--save_strategy", "best", "--output_dir", tmp_path / "out", "--model_max_length", "256")
    assert (content["validation_loss_before"], content["validation_loss_after"]) == (None, None)
    assert "no validation loss was taken" in capsys.readouterr().out


def test_a_relative_cache_folder_means_the_users(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alpaca_ray.train import runner

    seen: list[str | None] = []

    def stop(job: Any, bundle: Any) -> dict[str, Any]:
        seen.append(job.settings.cache_dir)
        raise OutputError("far enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "launch", stop)
    with pytest.raises(OutputError, match="far enough"):
        run("--model", tiny_llama, "--data_path", data, "--cache_dir", "hub", "--output_dir", "out")
    assert seen == [str(tmp_path / "hub")]


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from alpaca_ray.train.runner import train

    folder = tmp_path / "out"
    settings = parse_settings(TrainSettings, ["--dry_run", "--output_dir", str(folder)], description="test")
    assert train(settings) is None
    assert "learning_rate:" in capsys.readouterr().out
    assert not folder.exists()


def test_the_saved_settings_start_the_same_run_again(lora_run: Path) -> None:
    saved = parse_settings(TrainSettings, ["--config", str(lora_run / "train_settings.yaml")], description="test")
    content = json.loads((lora_run / "run.json").read_text())
    assert {name: value for name, value in saved.to_dict().items() if name in content["settings"]} == content[
        "settings"
    ]
