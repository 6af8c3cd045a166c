"""Checkpoints of a tiny model, without Ray: what is copied, what is written beside the work, and what goes wrong."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_ray.errors import OutputError, TrainingError
from alpaca_ray.train import background, checkpoints, snapshot
from alpaca_ray.train.publish import newest_checkpoint
from alpaca_ray.train.survival import SurvivingTrainer


def trainer_of(folder: Path, tiny_llama: Path, **arguments: Any) -> SurvivingTrainer:
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    class Notes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.take_note()

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    samples = [{"input_ids": torch.arange(5, 25), "labels": torch.arange(5, 25)} for _ in range(8)]
    given = {"max_steps": 4, "save_steps": 2, "learning_rate": 0.1, "report_to": ["none"], **arguments}
    trainer = SurvivingTrainer(
        model=model,
        args=TrainingArguments(
            str(folder), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=2, log_level="error", **given
        ),
        train_dataset=samples,
        data_collator=default_data_collator,
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        callbacks=[Notes()],
    )
    return trainer


def test_a_copy_shares_nothing_with_what_goes_on_and_keeps_tied_weights_tied() -> None:
    weight = torch.ones(3)
    state = {"a": weight, "b": [weight, {"step": torch.tensor(1.0)}], "c": ("x", 2, None)}
    copied = snapshot.to_host(state)
    weight.zero_()
    assert copied["a"].tolist() == [1, 1, 1]
    assert copied["a"].data_ptr() == copied["b"][0].data_ptr() != weight.data_ptr()
    assert copied["c"] == ("x", 2, None)
    assert copied["b"][1]["step"].item() == 1


def test_checkpoints_are_whole_reported_once_and_can_be_read_by_others(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    trainer = trainer_of(tmp_path, tiny_llama, save_total_limit=1)
    reported: list[Path] = []
    trainer.on_checkpoint = reported.append
    trainer.train()
    assert reported == [tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    names = {path.name for path in reported[1].iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt"}
    assert names >= {"rng_state.pth", "trainer_state.json", "tokenizer.json"}
    assert "model.safetensors" not in names
    read = AutoPeftModelForCausalLM.from_pretrained(reported[1])
    trained = {name: weight for name, weight in trainer.model.named_parameters() if ".lora_" in name}
    for name, weight in read.named_parameters():
        if name in trained:
            assert torch.equal(weight, trained[name])
    assert read.peft_config["default"].inference_mode


def test_a_full_disk_stops_the_training_at_the_next_step_with_one_line(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, tiny_llama, max_steps=400)
    whole = checkpoints._other_writers

    def full(of: Any, states: Any) -> list[snapshot.Writer]:
        if of.state.global_step == 2:
            return whole(of, states)

        def write(folder: Path) -> None:
            (folder / "half").touch()
            raise OSError(errno.ENOSPC, "No space left on device")

        return [write]

    monkeypatch.setattr(checkpoints, "_other_writers", full)
    with pytest.raises(OutputError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'checkpoint-4'}: cannot be written: ")
    assert "No space left on device" in text
    assert "\n" not in text
    assert trainer.state.global_step < 400
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_weights_that_are_no_numbers_never_replace_a_good_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_llama, save_total_limit=1)
    trainer.train()
    with torch.no_grad():
        next(weight for name, weight in trainer.model.named_parameters() if ".lora_B" in name).fill_(float("nan"))
    trainer.state.global_step = 6
    trainer._save_checkpoint(trainer.model, None)
    with pytest.raises(TrainingError, match=r"lora_B.* no longer a number after step 6"):
        trainer.settle_checkpoint()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not list(tmp_path.glob(f"{background.STAGING}*"))


def test_a_resume_with_nothing_left_to_learn_takes_no_step(tiny_llama: Path, tmp_path: Path) -> None:
    first = trainer_of(tmp_path, tiny_llama, max_steps=3, save_steps=3)
    first.train()
    again = trainer_of(tmp_path, tiny_llama, max_steps=3, save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 3
    weights = dict(first.model.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in again.model.named_parameters())


def test_how_often_to_save_is_the_commands_not_the_checkpoints(tiny_llama: Path, tmp_path: Path) -> None:
    trainer_of(tmp_path, tiny_llama, max_steps=2, save_steps=2).train()
    again = trainer_of(tmp_path, tiny_llama, max_steps=4, save_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_another_number_of_workers_begins_a_random_state_that_no_step_had(tiny_llama: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tiny_llama)
    (tmp_path / "two").mkdir()
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        torch.save({}, tmp_path / "two" / name)
    states = []
    for step in (0, 3, 3):
        trainer.state.global_step = step
        trainer._load_rng_state(str(tmp_path / "two"))
        states.append(torch.random.get_rng_state())
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])
