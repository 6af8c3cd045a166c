"""What a run shows: the progress line, FLOPs utilisation, the plot of lengths, the model card, a loss that is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from alpaca_ray.console import as_bytes
from alpaca_ray.errors import SettingsError, TrainingError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train import claim, finish, progress
from alpaca_ray.train.card import render_model_card
from alpaca_ray.train.flops import peak_flops, utilisation
from alpaca_ray.train.order import Batches
from alpaca_ray.train.whole import write_list


def settings_of(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, list(flags), description="test")


def test_a_progress_line_says_everything_there_is_to_say() -> None:
    row = {
        "step": 3,
        "total_steps": 9,
        "loss": 1.25,
        "learning_rate": 3e-4,
        "tokens_per_second": 12345.6,
        "model_flops_utilisation": 0.512,
        "padding_share": 0.18,
        "memory_bytes": 17_250_000_000,
        "seconds_left": 3723.0,
    }
    assert progress.format_row(row) == (
        "step 3/9 | loss 1.2500 | learning rate 3.00e-04 | 12346 tokens/s | MFU 51.2% | padding 18% | 17.25 GB | "
        "1:02:03 left"
    )
    assert progress.format_row({"step": 0, "eval_loss": 2.0}) == "step 0 | validation loss 2.0000"
    assert progress.format_row({"step": 4, "stopped": "the loss is not finite (nan)"}).endswith("(nan)")


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A10G", 70.0),
        ("Some Accelerator 9000", None),
    ],
)
def test_a_device_is_known_by_its_name(name: str, tera: float | None) -> None:
    found = peak_flops(name)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


def test_the_figure_of_another_trainer_comes_out_as_published() -> None:
    # NeMo Automodel's summary: LoRA, Llama 3 8B, one H100, 12,473 tokens/s, 41 % of the peak.
    share = utilisation(12_473, 8_030_261_248, "lora", "NVIDIA H100 80GB HBM3", 1)
    assert share == pytest.approx(0.405, abs=0.005)
    full = utilisation(12_473, 8_030_261_248, "full", "NVIDIA H100 80GB HBM3", 1)
    assert full == pytest.approx(1.5 * share)
    assert utilisation(24_946, 8_030_261_248, "lora", "NVIDIA H100 80GB HBM3", 2) == pytest.approx(share)
    assert utilisation(1, 1, "lora", "unheard of", 1) is None


def test_sizes_read_well() -> None:
    assert [as_bytes(size) for size in (0, 999, 1500, 2.5e6, 1.2345e9, 25e9, 1.5e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "1.23 GB",
        "25 GB",
        "1,500 GB",
    ]


def test_a_step_names_the_samples_that_its_workers_take() -> None:
    for step in (None, 10):
        workers = [
            Batches(23, micro_batch=2, step=step, workers=3, rank=rank, seed=5, lengths=list(range(23)))
            for rank in range(3)
        ]
        per_step = -(-(step or 6) // 6)
        number = 0
        for epoch in range(2):
            for one in workers:
                one.set_epoch(epoch)
            rows = [list(one) for one in workers]
            for start in range(0, len(rows[0]), per_step):
                number += 1
                taken = sorted(index for row in rows for batch in row[start : start + per_step] for index in batch)
                assert sorted(workers[0].of_step(number)) == taken


def content_of(**changes: Any) -> dict[str, Any]:
    return {
        "mode": "lora",
        "base_model": "acme/model-7b",
        "inputs": [{"name": "/secret/place/data.json", "sha256": "ab" * 32, "parent_run": "run9"}, {"name": "org/set"}],
        "lengths": {"samples": 1200, "mean": 91.5, "longest": 512, "share_at_limit": 0.015},
        "validation_loss_before": 2.5,
        "validation_loss_after": 1.25,
        "steps": 40,
        "trainable_parameters": 10,
        "parameters": 1000,
        "tokens_per_second": 1234.5,
        "precision": "bf16",
        "workers": 2,
        "packing": "borders",
        "heldout_records": 100,
        "prompt_template": "stanford",
        "versions": {"torch": "2.13.0"},
        "hardware": "1 x NVIDIA H100 a worker",
        **changes,
    }


def front_of(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_of_an_adapter(tmp_path: Path) -> None:
    text = render_model_card(content_of(), settings_of("--output_dir", str(tmp_path / "mine")))
    matter, body = front_of(text)
    assert matter["license"] == "other"
    assert (matter["base_model"], matter["base_model_relation"]) == ("acme/model-7b", "adapter")
    assert matter["library_name"] == "peft"
    assert matter["datasets"] == ["org/set"]
    for part in (
        "# mine",
        "2.5000",
        "1.2500",
        "10 of 1,000 (1.00%)",
        "1,200 records",
        "run9",
        "abab",
        "Held out",
        "H100",
    ):
        assert part in body
    assert "/secret" not in text
    assert "Not stated" in body


def test_a_card_of_a_whole_model_and_a_stated_licence() -> None:
    settings = settings_of("--full", "--license", "mit")
    matter, body = front_of(render_model_card(content_of(mode="full", base_model="embedded"), settings))
    assert (matter["license"], matter["library_name"]) == ("mit", "transformers")
    assert matter["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert matter["tags"] == ["instruction-tuning", "alpaca-ray"]
    assert "`mit`, as stated" in body
    assert "lora_r" not in body
    with pytest.raises(SettingsError, match="--license 'My Own': must be a licence id"):
        settings_of("--license", "My Own")


def test_a_readme_that_is_somebodys_own_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of()
    finish.write_card(tmp_path, content_of(), settings)
    card = tmp_path / "README.md"
    (tmp_path / "run.json").write_text('{"stage": "train"}')
    assert card in claim.ours(tmp_path)
    finish.write_card(tmp_path, content_of(steps=41), settings)
    assert "| 41 |" in card.read_text()
    card.write_text("# notes\n")
    assert card not in claim.ours(tmp_path)
    finish.write_card(tmp_path, content_of(), settings)
    assert card.read_text() == "# notes\n"
    assert "no card of ours" in capsys.readouterr().out


def test_lengths_are_plotted_and_summed_up(tmp_path: Path) -> None:
    found = finish.with_lengths({"steps": 1, "lengths": [(10, 3), (20, 1), (64, 2)]}, tmp_path, 64)
    assert found["lengths"] == {"samples": 6, "mean": 29.7, "longest": 64, "share_at_limit": 0.3333}
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


class Trainer:
    """What the sentinel looks at of a trainer."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(2, 2)
        self._tr_loss = torch.tensor(1.0)

    def get_train_dataloader(self) -> Any:
        return SimpleNamespace(batch_sampler=SimpleNamespace(of_step=lambda step: list(range(step, step + 10))))

    def settle_checkpoint(self) -> None:
        """Nothing is under way."""


def watching(folder: Path, *, workers: int = 1) -> tuple[Any, Any, Any]:
    from alpaca_ray.train.sentinel import Sentinel

    sentinel = Sentinel(folder, [f"id{number}" for number in range(40)])
    sentinel.trainer = Trainer()
    arguments = SimpleNamespace(device=torch.device("cpu"), world_size=workers)
    control = SimpleNamespace(should_log=False, should_save=False, should_evaluate=False)
    return sentinel, arguments, control


def state_of(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=50, is_world_process_zero=True)


def test_a_lost_loss_stops_at_its_step_with_its_samples(tmp_path: Path) -> None:
    sentinel, arguments, control = watching(tmp_path)
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text("{}")
    write_list(tmp_path / "checkpoint-6")
    sentinel.on_step_end(arguments, state_of(6), control)
    sentinel.trainer._tr_loss = torch.tensor(math.nan)
    with pytest.raises(TrainingError) as caught:
        sentinel.on_step_end(arguments, state_of(7), control)
    text = str(caught.value)
    assert "the loss is not finite (nan) at step 7: training stopped" in text
    assert "its samples: id7, id8, id9, id10, id11, id12, id13, id14 and 2 more, in metrics.jsonl" in text
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-6'}" in text
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (row["step"], row["sample_ids"]) == (7, [f"id{number}" for number in range(7, 17)])


def test_where_looking_costs_the_first_lost_step_is_named_later(tmp_path: Path) -> None:
    sentinel, arguments, control = watching(tmp_path, workers=2)
    sentinel.on_step_end(arguments, state_of(1), control)
    sentinel.trainer._tr_loss = torch.tensor(math.inf)
    sentinel.on_step_end(arguments, state_of(2), control)
    sentinel.on_step_end(arguments, state_of(3), control)
    with pytest.raises(TrainingError, match=r"at step 2: training stopped.*no checkpoint was written before it"):
        sentinel.on_step_end(arguments, state_of(4), SimpleNamespace(**{**vars(control), "should_save": True}))


def test_weights_that_are_lost_make_no_checkpoint(tmp_path: Path) -> None:
    sentinel, arguments, control = watching(tmp_path)
    saving = SimpleNamespace(**{**vars(control), "should_save": True})
    sentinel.on_step_end(arguments, state_of(1), saving)
    sentinel.trainer.model.weight.data[0, 0] = math.nan
    with pytest.raises(TrainingError, match="the weights are not finite any more"):
        sentinel.on_step_end(arguments, state_of(2), saving)
    with pytest.raises(TrainingError, match="the weights are not finite any more"):
        sentinel.on_train_end(arguments, state_of(2), control)
    with pytest.raises(TrainingError, match="the validation loss is nan at step 3"):
        sentinel.on_log(arguments, state_of(3), control, {"eval_loss": math.nan})


def test_trackers_write_below_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from alpaca_ray.train.trackers import place_trackers

    names = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_DIR")
    for name in names:
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    place_trackers(tmp_path, [])
    assert not any(name in os.environ for name in names)
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    place_trackers(tmp_path, ["wandb"])
    assert os.environ["WANDB_DIR"] == "/elsewhere"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "trackers" / "tensorboard")
    assert os.environ["MLFLOW_TRACKING_URI"] == f"file://{tmp_path}/trackers/mlruns"
    assert (tmp_path / "trackers").is_dir()
