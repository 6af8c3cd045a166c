"""From our settings, which keep the originals' names, to the installed TrainingArguments. Pure, except ``check``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.train import TrainSettings
from alpaca_ray.settings.training_arguments import RETIRED
from alpaca_ray.train import options, zero
from alpaca_ray.train.plan import Plan

_SHARDING = {"full_shard": True, "shard_grad_op": False, "hybrid_shard": True, "hybrid_shard_zero2": False}
_TRACKER_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "azure_ml": ("azureml",), "dvclive": ("dvclive",)}


def translate(settings: TrainSettings, plan: Plan, output_dir: str, *, has_validation: bool) -> dict[str, Any]:
    """Return keyword arguments for the installed TrainingArguments.

    Raises:
        SettingsError: validation is asked for and nothing is held out, or an ``--fsdp`` option is unknown.
    """
    strategy = settings.eval_strategy
    if not has_validation and strategy != "no":
        if settings.was_given("eval_strategy"):
            raise SettingsError(f"--evaluation_strategy {strategy} needs held-out records: give --val_set_size")
        strategy = "no"
    values: dict[str, Any] = {
        "output_dir": output_dir,
        "max_steps": settings.max_steps,
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": plan.micro_batch,
        "per_device_eval_batch_size": settings.per_device_eval_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        # TrainingArguments 5 has no warmup_ratio: warmup_steps below 1 is a share of all steps.
        "warmup_steps": settings.warmup_steps or settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "optim": settings.optim,
        "gradient_checkpointing": settings.gradient_checkpointing or None,
        "seed": settings.seed,
        "bf16": plan.precision == "bf16",
        "fp16": plan.precision == "fp16",
        "tf32": plan.tf32,
        "use_cpu": not plan.use_gpu,
        "dataloader_pin_memory": plan.use_gpu,
        "logging_steps": settings.logging_steps,
        "logging_first_step": settings.spoken == "ours",  # so that a short run shows a loss, too
        "logging_nan_inf_filter": False,
        "eval_strategy": strategy,
        "eval_steps": settings.eval_steps,
        "save_strategy": settings.save_strategy,
        "save_steps": settings.save_steps,
        "save_total_limit": settings.save_total_limit,
        "load_best_model_at_end": settings.load_best_model_at_end and has_validation,
        "metric_for_best_model": "loss" if has_validation else None,
        "report_to": plan.trackers or ["none"],
        "run_name": settings.run_name,
        "deepspeed": _deepspeed(settings, plan),
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "log_level": "error",
        **_fsdp(settings, plan),
    }
    rest = {name: value for name, value in settings.training_arguments.items() if name not in RETIRED}
    for name, value in rest.items():  # a worker on another node does not have the file
        if name.endswith("_config") and isinstance(value, str) and not value.lstrip().startswith("{"):
            rest[name] = read_json(name, value)
    if isinstance(rest.get("fsdp_config"), dict) and "fsdp_config" in values:
        rest["fsdp_config"] = {**values["fsdp_config"], **rest["fsdp_config"]}
    return {**values, **rest}


def _deepspeed(settings: TrainSettings, plan: Plan) -> dict[str, Any] | None:
    if not settings.deepspeed:
        return None
    further = settings.training_arguments
    clipping, epsilon = further.get("max_grad_norm", 1.0), further.get("adam_epsilon", 1e-8)
    expected: dict[str, tuple[str, Any]] = {
        "train_micro_batch_size_per_gpu": ("--per_device_train_batch_size", plan.micro_batch),
        "gradient_accumulation_steps": ("--gradient_accumulation_steps", plan.accumulation),
        "train_batch_size": ("--batch_size", plan.micro_batch * plan.accumulation * plan.workers),
        "gradient_clipping": ("--max_grad_norm", clipping),
        "bf16.enabled": ("--bf16", plan.precision == "bf16"),
        "fp16.enabled": ("--fp16", plan.precision == "fp16"),
        "optimizer.params.lr": ("--learning_rate", settings.learning_rate),
        "optimizer.params.weight_decay": ("--weight_decay", settings.weight_decay),
        "optimizer.params.eps": ("--adam_epsilon", epsilon),
        "scheduler.params.warmup_max_lr": ("--learning_rate", settings.learning_rate),
    }
    return zero.complete(read_json("deepspeed", settings.deepspeed), settings.deepspeed, expected)


def read_json(flag: str, path: str) -> dict[str, Any]:
    """Return the content of a configuration file that a flag names.

    Raises:
        SettingsError: it is missing or no JSON object.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--{flag} {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise SettingsError(f"--{flag} {path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"--{flag} {path}: must hold a JSON object")
    return content


def check_trackers(trackers: list[str]) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        SettingsError: one is not.
    """
    for name in trackers:
        packages = _TRACKER_PACKAGES.get(name, (name,))
        if name != "all" and not any(importlib.util.find_spec(package) for package in packages):
            raise SettingsError(f"--report_to {name}: the package {packages[0]} is not installed")


def check(arguments: dict[str, Any]) -> None:
    """Build TrainingArguments once, before anything is written, for the errors it raises. Takes seconds of imports.

    Raises:
        SettingsError: it refuses a value.
    """
    import logging
    import warnings

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers import TrainingArguments

    machine_dependent = {"use_cpu": True, "tf32": None, "fp16": False, "fsdp": None, "deepspeed": None}
    known = {name: value for name, value in arguments.items() if name != "fsdp_config"}
    options.check_names(known)
    if known.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise SettingsError("--use_liger_kernel: the package liger_kernel is not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = TrainingArguments(**{**known, **machine_dependent})
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"TrainingArguments refuses a value: {error}") from error
    options.check_library(built)


def _fsdp(settings: TrainSettings, plan: Plan) -> dict[str, Any]:
    """Translate ``full_shard auto_wrap`` into what transformers 5 calls FSDP2's options."""
    if not settings.fsdp.strip():
        return {}
    config: dict[str, Any] = {"version": 2}
    for option in settings.fsdp.split():
        if option in _SHARDING:
            config["reshard_after_forward"] = _SHARDING[option]
        elif option == "offload":
            config["cpu_offload"] = True
        elif option != "auto_wrap":
            known = ", ".join([*_SHARDING, "auto_wrap", "offload"])
            raise SettingsError(f"--fsdp {option!r}: known options are {known}")
    if settings.fsdp_transformer_layer_cls_to_wrap:
        classes = settings.fsdp_transformer_layer_cls_to_wrap.split(",")
        config["transformer_layer_cls_to_wrap"] = [name.strip() for name in classes if name.strip()]
    if not plan.fsdp:
        return {}
    # Gradients kept back until the last micro-batch would stand whole on every worker.
    accumulation = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return {"fsdp": True, "fsdp_config": config, "accelerator_config": accumulation}
