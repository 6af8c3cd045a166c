"""The dialects of jobs/train.py: which flag brings which defaults, and what contradicts what."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.settings.training_arguments import training_argument_names

STANFORD = """
--model_name_or_path facebook/opt-6.7b --data_path ./alpaca_data.json --bf16 True --output_dir out --num_train_epochs 3
--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --gradient_accumulation_steps 8
--evaluation_strategy "no" --save_strategy "steps" --save_steps 2000 --save_total_limit 1 --learning_rate 2e-5
--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --fsdp "full_shard auto_wrap"
--fsdp_transformer_layer_cls_to_wrap 'OPTDecoderLayer' --tf32 True
"""

ALPACA_LORA = """
--base_model decapoda-research/llama-7b-hf --data_path yahma/alpaca-cleaned --output_dir ./lora-alpaca --batch_size 128
--micro_batch_size 4 --num_epochs 3 --learning_rate 1e-4 --cutoff_len 512 --val_set_size 2000 --lora_r 8 --lora_alpha 16
--lora_dropout 0.05 --lora_target_modules '[q_proj,v_proj]' --train_on_inputs --group_by_length
"""


def parse(*flags: str) -> TrainSettings:
    return parse_settings(TrainSettings, list(flags), description="test")


def test_no_arguments_mean_lora_on_the_embedded_model_and_the_shipped_seeds() -> None:
    settings = parse()
    assert (settings.model_name, settings.data_path) == ("embedded", ["seeds"])
    assert settings.mode[0] == "lora"
    assert settings.lora_target_modules == ["all-linear"]
    assert settings.prompt_template == "stanford"
    assert (settings.bf16, settings.packing, settings.add_eos_token, settings.train_on_inputs) == (
        True,
        True,
        True,
        False,
    )


def test_stanfords_own_command_parses_and_means_what_it_meant() -> None:
    settings = parse(*shlex.split(STANFORD))
    assert settings.mode == ("full", "the default of the Stanford dialect")
    assert settings.model_flag == "--model_name_or_path"
    assert (settings.bf16, settings.tf32) == (True, True)
    assert settings.gradient_accumulation_steps == 8
    assert settings.eval_strategy == "no"
    assert settings.fsdp == "full_shard auto_wrap"
    assert settings.model_max_length == 512
    assert settings.prompt_template == "stanford"
    assert settings.val_set_size == 0
    assert not settings.packing


def test_stanfords_defaults_are_those_of_training_arguments() -> None:
    settings = parse("--model_name_or_path", "m")
    assert (settings.learning_rate, settings.per_device_train_batch_size, settings.num_train_epochs) == (5e-5, 8, 3)
    assert (settings.lr_scheduler_type, settings.warmup_ratio, settings.warmup_steps) == ("linear", 0, 0)
    assert (settings.logging_steps, settings.save_steps, settings.save_total_limit) == (500, 500, None)
    assert (settings.bf16, settings.fp16) == (False, False)


def test_alpaca_loras_own_command_parses_and_means_what_it_meant() -> None:
    settings = parse(*shlex.split(ALPACA_LORA))
    assert settings.mode[0] == "lora"
    assert settings.lora_target_modules == ["q_proj", "v_proj"]
    assert (settings.load_8bit, settings.fp16, settings.bf16) == (True, True, False)
    assert (settings.batch_size, settings.per_device_train_batch_size) == (128, 4)
    assert settings.model_max_length == 512
    assert (settings.train_on_inputs, settings.group_by_length, settings.ends_samples) == (True, True, True)
    assert settings.warmup_steps == 100
    assert (settings.eval_strategy, settings.eval_steps, settings.save_steps) == ("steps", 200, 200)
    assert (settings.save_total_limit, settings.load_best_model_at_end) == (3, True)
    assert settings.prompt_template == "alpaca"


def test_alpaca_loras_defaults() -> None:
    settings = parse("--base_model", "m")
    assert (settings.learning_rate, settings.model_max_length, settings.val_set_size) == (3e-4, 256, 2000)
    assert settings.train_on_inputs
    assert (settings.data_path, settings.output_dir) == (["yahma/alpaca-cleaned"], "./lora-alpaca")


@pytest.mark.parametrize("flag", [[], ["--add_eos_token"], ["--add_eos_token", "False"]])
def test_alpaca_loras_end_token_flag_is_accepted_and_changes_nothing(flag: list[str]) -> None:
    assert parse("--base_model", "m", *flag).ends_samples
    assert not parse("--no_add_eos_token").ends_samples
    assert parse("--model_name_or_path", "m").ends_samples


def test_yaml_booleans_become_wandbs_words(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("wandb_watch: false\nwandb_log_model: true\n")
    settings = parse("--config", str(file))
    assert (settings.wandb_watch, settings.wandb_log_model) == ("false", "true")
    assert parse("--wandb_watch", "gradients").wandb_watch == "gradients"


def test_alpaca_lora_without_validation_keeps_no_best_checkpoint() -> None:
    settings = parse("--base_model", "m", "--val_set_size", "0")
    assert (settings.eval_strategy, settings.load_best_model_at_end) == ("no", False)


def test_alpaca_lora_in_4_bits_is_not_8_bits_too() -> None:
    settings = parse("--base_model", "m", "--load_4bit")
    assert (settings.load_4bit, settings.load_8bit) == (True, False)


@pytest.mark.parametrize("flag", [["--lora_r", "4"], ["--load_4bit"], ["--lora_target_modules", "q_proj"]])
def test_a_lora_or_bit_flag_turns_stanfords_dialect_to_lora_and_says_why(flag: list[str]) -> None:
    mode, why = parse("--model_name_or_path", "m", *flag).mode
    assert mode == "lora"
    assert flag[0] in why


def test_full_in_our_dialect() -> None:
    assert parse("--full").mode == ("full", "--full")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--model", "a", "--base_model", "b"], "--model and --base_model both name the model"),
        (["--base_model", "a", "--model_name_or_path", "b"], "both name the model"),
        (["--bf16", "--fp16"], "--bf16 and --fp16"),
        (["--full", "--load_4bit"], "--full with --load_4bit"),
        (["--load_8bit", "--load_4bit"], "--load_8bit and --load_4bit"),
        (["--fsdp", "full_shard", "--deepspeed", "d.json"], "--fsdp and --deepspeed"),
        (["--resume", "--overwrite"], "--resume and --overwrite"),
        (["--batch_size", "8", "--micro_batch_size", "2", "--per_device_train_batch_size", "4"], "the same setting"),
        (["--evaluation_strategy", "no", "--eval_strategy", "epoch"], "the same setting"),
        (["--num_workers", "8:2"], "--num_workers: '8:2': MIN is above MAX"),
        (["--learning_rate", "fast"], "--learning_rate 'fast'"),
        (["--lora_r", "0"], "--lora_r '0'"),
        (["--max_steps", "0"], "--max_steps 0"),
        (["--val_set_size", "2.5"], "--val_set_size 2.5"),
        (["--load_best_model_at_end", "--val_set_size", "0"], "--load_best_model_at_end needs"),
        (["--no_cuda", "True"], "use --use_gpu false"),
        (["--lerning_rate", "1"], "did you mean --learning_rate"),
    ],
)
def test_contradictions_are_one_line_that_names_the_flag(flags: list[str], part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(*flags)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dialect", [["--model", "m"], ["--base_model", "m"], ["--model_name_or_path", "m"]])
def test_every_other_training_argument_passes_through_in_any_dialect(dialect: list[str]) -> None:
    settings = parse(
        *dialect, "--max_grad_norm", "0.3", "--adam_beta2=0.95", "--torch_compile", "--logging_dir", "logs"
    )
    assert settings.training_arguments == {
        "max_grad_norm": 0.3,
        "adam_beta2": 0.95,
        "torch_compile": True,
        "logging_dir": "logs",
    }


def test_field_names_read_from_source_are_those_of_the_class() -> None:
    import dataclasses

    from transformers import TrainingArguments

    assert training_argument_names() == {field.name for field in dataclasses.fields(TrainingArguments) if field.init}


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--bf16"], True),
        (["--bf16", "False"], False),
        (["--no_bf16"], False),
        (["--nobf16"], False),
        (["--bf16=true"], True),
    ],
)
def test_both_ways_of_writing_booleans(flags: list[str], value: bool) -> None:
    assert parse(*flags).bf16 is value


@pytest.mark.parametrize(
    "words", [["[q_proj,v_proj]"], ["q_proj,v_proj"], ["q_proj", "v_proj"], ["['q_proj', 'v_proj']"]]
)
def test_every_way_of_writing_target_modules(words: list[str]) -> None:
    assert parse("--lora_target_modules", *words).lora_target_modules == ["q_proj", "v_proj"]


def test_no_packing() -> None:
    assert not parse("--no_packing").packing
