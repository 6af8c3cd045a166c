"""Which ways of dividing and quantising a model go together."""

from __future__ import annotations

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.train.plan import Plan, make_plan
from alpaca_ray.train.runner import _bundle


def plan(*flags: str, has_gpus: bool = True) -> Plan:
    return make_plan(parse_settings(TrainSettings, list(flags), description="test"), has_gpus=has_gpus)


def test_a_spread_model_reserves_all_its_gpus_for_one_worker() -> None:
    made = plan("--gpus_per_worker", "4")
    assert (made.workers, made.gpus_per_worker) == (1, 4)
    assert _bundle(made) == {"CPU": 1, "GPU": 4}
    assert _bundle(plan("--num_workers", "2")) == {"CPU": 1, "GPU": 1}
    assert _bundle(plan(has_gpus=False)) == {"CPU": 1}


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--gpus_per_worker", "2", "--num_workers", "2"], "DDP cannot wrap a model"),
        (["--gpus_per_worker", "2", "--num_workers", "1:2"], "DDP cannot wrap a model"),
        (["--gpus_per_worker", "2", "--fsdp", "full_shard"], "--gpus_per_worker 2 and --fsdp contradict"),
        (["--gpus_per_worker", "2", "--deepspeed", "d.json"], "--gpus_per_worker 2 and --deepspeed contradict"),
        (["--gpus_per_worker", "2", "--use_gpu", "False"], "there is no GPU to spread the model over"),
        (["--fsdp", "full_shard", "--load_8bit"], "8-bit weights cannot be sharded: give --load_4bit"),
        (["--deepspeed", "d.json", "--load_4bit"], "give --fsdp and --load_4bit"),
        (["--deepspeed", "d.json", "--num_workers", "2:4"], "cannot be divided anew"),
    ],
)
def test_what_does_not_go_together_is_refused(flags: list[str], part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plan(*flags)
    assert part in str(caught.value)


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_a_worker_has_at_least_one_gpu(value: str) -> None:
    with pytest.raises(SettingsError, match="--gpus_per_worker"):
        plan("--gpus_per_worker", value)


def test_a_4_bit_base_may_be_sharded() -> None:
    assert plan("--fsdp", "full_shard", "--load_4bit", "--num_workers", "2").fsdp


@pytest.mark.parametrize("flag", ["--use_dora", "--use_rslora"])
def test_a_lora_variant_asks_for_lora(flag: str) -> None:
    assert plan("--model_name_or_path", "m", flag).mode == "lora"
    with pytest.raises(SettingsError, match=f"--full and {flag} contradict"):
        plan("--full", flag)


@pytest.mark.parametrize("value", ["0", "-2"])
def test_a_rank_below_one_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="--lora_r"):
        plan("--lora_r", value)
