"""What a training run proves of itself and shows: proofs, figures, card, dry run, trackers; on the CPU."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from alpaca_ray.errors import TrainingError
from alpaca_ray.records import read_records
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.claim import claimed, settle
from alpaca_ray.train.progress import CARD_MARK, format_row, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def run(*flags: str | Path) -> dict[str, Any] | None:
    from alpaca_ray.train.runner import train

    return train(parse_settings(TrainSettings, [str(flag) for flag in flags], description="test"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four short records in Stanford's form, with ids."""
    records = sorted(read_records("seeds"), key=lambda record: len(str(record)))[:24]
    path = tmp_path_factory.mktemp("data") / "alpaca_data.json"
    rows = [{k: r[k] for k in ("instruction", "input", "output")} | {"id": f"r{n}"} for n, r in enumerate(records)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def padded_run(ray_cluster: None, tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers, LoRA, padded batches, watched by tensorboard."""
    folder = tmp_path_factory.mktemp("seen") / "tuned"
    flags = (
        f"--model {tiny_llama} --data_path {data} --val_set_size 4 --max_steps 4 --batch_size 8 --num_workers 2 "
        "--no_packing --report_to tensorboard --license apache-2.0 --learning_rate 0.01 --bf16 False --logging_steps 2 "
        f"--output_dir {folder}"
    )
    run(*flags.split())
    return folder


def test_two_sharded_workers_prove_their_batches_shards_and_files(tiny_opt: Path, data: Path, tmp_path: Path) -> None:
    flags = f"--data_path {data} --val_set_size 0 --max_steps 3 --warmup_ratio 0 --num_workers 2 --bf16 False".split()
    content = run("--model", tiny_opt, "--full", "--fsdp", "full_shard auto_wrap", "--output_dir", tmp_path, *flags)
    assert content is not None
    proof = content["proof"]
    assert content["wrapper"] == "FSDPOPTForCausalLM"
    assert 0 <= proof["shard_distance"] <= proof["shard_tolerance"] == 1e-5
    assert 0 < proof["batch_distance"] <= proof["batch_tolerance"]
    assert proof["leak_distance"] == 0
    assert proof["tensors_read_back"] >= proof["trained_tensors"] > 30
    assert proof["seconds_before"] < 60


def test_rows_and_run_json_say_what_a_run_took(padded_run: Path) -> None:
    content = json.loads((padded_run / "run.json").read_text())
    rows = [row for row in read_metrics(padded_run) if "loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert 0 < row["padding_share"] < 1
        assert row["memory_bytes"] > 1e8
        assert "model_flops_utilisation" not in row  # no GPU
        line = format_row(row)
        assert " tokens/s | padding " in line
        assert " GB | " in line
        assert line.endswith(" left")
    assert 0 < content["padding_share"] < 1
    proof = content["proof"]
    assert proof["batch_distance"] <= proof["batch_tolerance"] == 1e-5
    assert proof["trained_tensors"] == proof["tensors_read_back"] == 2 * 7 * 2  # A and B, seven layers, two blocks
    memory = content["memory"]
    assert memory["estimated_bytes"] > 0
    assert memory["peak_bytes"] > 0
    assert memory["measured"].startswith("resident memory")
    assert content["lengths"]["samples"] == 20
    assert (padded_run / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_says_what_was_trained_on_what(padded_run: Path, data: Path) -> None:
    content = json.loads((padded_run / "run.json").read_text())
    text = (padded_run / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["license"] == "apache-2.0"
    assert matter["library_name"] == "peft"
    assert matter["tags"] == ["instruction-tuning", "lora", "alpaca-ray"]
    assert "base_model" not in matter  # a folder is no model of the hub
    assert CARD_MARK in body
    assert str(data.parent) not in text
    for part in (content["inputs"][0]["sha256"], f"{content['validation_loss_after']:.4f}", "lora_r", "20 records"):
        assert part in body


def test_tensorboard_gets_the_losses_of_worker_0_alone(padded_run: Path) -> None:
    files = list((padded_run / "trackers" / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 1
    content = files[0].read_bytes()
    position, events = 0, []
    while position < len(content):
        size = struct.unpack_from("<Q", content, position)[0]
        events.append(content[position + 12 : position + 12 + size])
        position += 16 + size
    assert sum(b"train/loss" in event for event in events) == 3
    assert any(b"eval/loss" in event for event in events)


def test_overwriting_clears_our_card_and_keeps_somebodys(
    padded_run: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(padded_run, folder)
    with claimed(folder, resume=False, overwrite=True, examine=lambda: None):
        settle(folder)
    assert list(folder.iterdir()) == []  # our card, too
    shutil.copytree(padded_run, folder, dirs_exist_ok=True)
    (folder / "README.md").write_text("# mine\n")
    flags = ["--model", tiny_llama, "--data_path", data, "--max_steps", "1", "--val_set_size", "0"]
    run(*flags, "--output_dir", folder, "--overwrite")
    assert json.loads((folder / "run.json").read_text())["steps"] == 1
    assert (folder / "README.md").read_text() == "# mine\n"


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_samples(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    flags = (
        f"--model {tiny_llama} --data_path {data} --full --val_set_size 0 --batch_size 4 --max_steps 40 --save_steps 1 "
        f"--learning_rate 1e15 --warmup_ratio 0 --bf16 False --max_grad_norm 0 --optim sgd --output_dir {folder}"
    ).split()  # the first step leaves weights that are numbers, and whose products are not
    with pytest.raises(TrainingError) as caught:
        run(*flags)
    text = str(caught.value)
    assert text.startswith("the loss is not finite (")
    assert " at step 2: training stopped; its samples: " in text
    assert f"the last good checkpoint is {folder / 'checkpoint-1'}" in text
    row = read_metrics(folder)[-1]
    assert row["step"] == 2
    assert row["stopped"].startswith("the loss is not finite")
    assert len(set(row["sample_ids"])) == 4
    assert f"its samples: {', '.join(row['sample_ids'])};" in text
    assert not (folder / "run.json").exists()


def test_a_dry_run_counts_what_a_run_trains_and_names_what_the_cluster_lacks(
    padded_run: Path, tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    flags = ["--model", tiny_llama, "--data_path", data, "--val_set_size", "4", "--batch_size", "8", "--dry_run"]
    assert run(*flags, "--output_dir", folder, "--max_steps", "4") is None
    content = json.loads((padded_run / "run.json").read_text())
    text = capsys.readouterr().out
    assert f"parameters: {content['parameters']:,}, of which {content['trainable_parameters']:,} are trained" in text
    assert "steps: 4 (1.33 epochs of 20 records)" in text
    assert "estimated peak: " in text
    assert "the cluster has room for it" in text
    assert not folder.exists()
    run(*flags, "--output_dir", folder, "--num_workers", "2", "--cpus_per_worker", "400", "--use_gpu", "false")
    assert "the cluster lacks: 800 CPU are needed, and the cluster has 4" in capsys.readouterr().out
