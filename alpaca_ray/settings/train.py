"""The settings of ``jobs/train.py``. Names are TrainingArguments'; Alpaca-LoRA's are accepted beside them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationInfo, field_validator, model_validator

from alpaca_ray.settings.base import setting
from alpaca_ray.settings.dialects import choose
from alpaca_ray.settings.licence import check_licence
from alpaca_ray.settings.model import ModelSettings
from alpaca_ray.settings.training_arguments import ACCEPTED, REFUSED, RETIRED, training_argument_names
from alpaca_ray.settings.workers import parse_workers, worker_range


class TrainSettings(ModelSettings):
    """Every setting of a training run."""

    passthrough_field: ClassVar[str | None] = "training_arguments"

    data_path: list[str] = setting(
        ["seeds"],
        "Records: JSON, JSONL or Parquet files, a stage's folder, a hub dataset, or `seeds` (the shipped tasks). A "
        "record is {instruction, input, output}, or a chat: {messages: [{role, content}, ...]}, of which the "
        "assistant's turns are learnt.",
        group="data",
    )
    val_set_size: float = setting(
        0.1,
        "Records held out for the validation loss: a count, or a share below 1. 0: none.",
        group="data",
        ge=0,
    )
    model_max_length: int = setting(
        512, "Tokens a sample may have; longer ones are cut on the right.", group="data", aliases=("cutoff_len",), ge=8
    )
    prompt_template: str = setting(
        "stanford",
        "stanford (also called alpaca_legacy), alpaca (Alpaca-LoRA's, its dialect's default), alpaca_short, or a JSON "
        "file in Alpaca-LoRA's form, with the keys prompt_input (text with {instruction} and {input}) and "
        "prompt_no_input (with {instruction}). Chats take the tokenizer's chat template where it has one.",
        group="data",
        aliases=("prompt_template_name",),
    )
    train_on_inputs: bool = setting(False, "Learn the prompt's tokens too, not only the response.", group="data")
    add_eos_token: bool = setting(
        True,
        "End each sample that was not cut with the end token. Without effect in Alpaca-LoRA's dialect: its trainer "
        "ends them in any case.",
        group="data",
    )
    group_by_length: bool = setting(False, "Put samples of like length into one batch.", group="data")
    packing: bool = setting(
        True, "Lay a batch's samples end to end in one row instead of padding them. Same loss, less work.", group="data"
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = setting(
        "auto",
        "Attention. auto: flash attention on a GPU where it is installed, else ours, which computes each sample of a "
        "packed row alone.",
        group="model",
    )
    fused_lora: bool = setting(
        True, "Compute a layer and its adapter in one step. Same result up to rounding, less work.", group="LoRA"
    )

    num_train_epochs: float = setting(2.0, "Passes over the data.", group="training", aliases=("num_epochs",), gt=0)
    max_steps: int = setting(-1, "Optimiser steps; above 0 it wins over epochs.", group="training")
    batch_size: int | None = setting(
        None, "Samples a step over all workers; accumulation follows from it.", group="training", ge=1
    )
    per_device_train_batch_size: int = setting(
        8, "Samples a forward pass of one worker.", group="training", aliases=("micro_batch_size",), ge=1
    )
    per_device_eval_batch_size: int = setting(8, "The same for the validation loss.", group="training", ge=1)
    gradient_accumulation_steps: int = setting(1, "Forward passes a step.", group="training", ge=1)
    learning_rate: float = setting(5e-4, "Peak learning rate.", group="training", gt=0)
    lr_scheduler_type: str = setting("cosine", "linear, cosine, constant, constant_with_warmup, ...", group="training")
    warmup_ratio: float = setting(0.03, "Share of the steps that warm up.", group="training", ge=0, lt=1)
    warmup_steps: float = setting(0, "Steps that warm up; above 0 it wins over warmup_ratio.", group="training", ge=0)
    weight_decay: float = setting(0.0, "Weight decay.", group="training", ge=0)
    optim: str = setting("adamw_torch", "Optimiser, by TrainingArguments' names.", group="training")
    gradient_checkpointing: bool = setting(
        False, "Keep fewer activations and compute them again.", group="training", aliases=("activation_checkpointing",)
    )
    seed: int = setting(42, "Seed of everything random.", group="training")

    bf16: bool = setting(True, "Compute in bfloat16.", group="precision")
    fp16: bool = setting(False, "Compute in float16 (GPU only).", group="precision")
    tf32: bool | None = setting(None, "TF32 matrix products on GPUs that have them.", group="precision")

    logging_steps: float = setting(
        5, "Steps between two loss lines; below 1 a share of all steps.", group="logging", gt=0
    )
    eval_strategy: Literal["no", "steps", "epoch"] = setting(
        "epoch", "When to take the validation loss in between.", group="logging", aliases=("evaluation_strategy",)
    )
    eval_steps: float | None = setting(None, "Steps between two validations.", group="logging", gt=0)
    save_strategy: Literal["no", "steps", "epoch", "best"] = setting(
        "steps", "When to write output_dir/checkpoint-N.", group="logging"
    )
    save_steps: float = setting(100, "Steps between two checkpoints.", group="logging", gt=0)
    save_total_limit: int | None = setting(
        2,
        "Checkpoints that are kept, the newest and the one of the lowest validation loss among them; none: all.",
        group="logging",
        ge=1,
    )
    load_best_model_at_end: bool = setting(
        False, "Publish the checkpoint with the lowest validation loss.", group="logging"
    )
    report_to: list[str] = setting(
        ["none"], "Trackers: tensorboard, wandb, mlflow, trackio, ... (from worker 0).", group="logging"
    )
    record_samples: bool = setting(
        False, "Write the ids of the samples that each worker learnt in each step into samples.jsonl.", group="logging"
    )
    run_name: str | None = setting(None, "The run's name in a tracker.", group="logging", aliases=("wandb_run_name",))
    wandb_project: str | None = setting(
        None,
        "Weights & Biases project; turns that tracker on, as $WANDB_PROJECT does in Alpaca-LoRA's dialect.",
        group="logging",
    )
    wandb_watch: str | None = setting(None, "false, gradients or all.", group="logging")
    wandb_log_model: str | None = setting(None, "false or true.", group="logging")

    output_dir: str = setting(
        "out/train", "Folder for the adapter or checkpoint and all that belongs to it.", group="run"
    )
    license: str = setting(
        "other", "Licence that the model card states, by the hub's short names (apache-2.0, ...).", group="run"
    )
    resume: bool = setting(False, "Go on from the newest checkpoint in output_dir.", group="run")
    overwrite: bool = setting(
        False, "Delete an earlier run's files in output_dir first.", group="run", aliases=("overwrite_output_dir",)
    )
    resume_from_checkpoint: str | None = setting(
        None,
        "Begin from this checkpoint folder, or adapter; with --resume, where output_dir has no checkpoint yet.",
        group="run",
    )
    dry_run: bool = setting(
        False,
        "Print the resolved settings, the steps and the memory that is needed, and stop before any weights are loaded. "
        "Settings that the run would refuse end it with exit code 2; what the cluster here lacks for the run is a "
        "line, and exit code 0: the run may be meant for another.",
        group="run",
    )

    num_workers: int | str = setting(
        1,
        "Workers, each with its own GPU where GPUs are used. MIN:MAX: as many as the cluster has room for at the time.",
        group="cluster",
    )
    elastic_resize_interval: float = setting(
        60,
        "Seconds between two looks for room for more of MIN:MAX workers; a resize goes on from the newest checkpoint.",
        group="cluster",
        gt=0,
    )
    use_gpu: bool | Literal["auto"] = setting(
        "auto", "auto: where the cluster has GPUs or can start nodes that have them.", group="cluster"
    )
    cpus_per_worker: int | None = setting(
        None, "CPUs that Ray reserves for a worker (default 1).", group="cluster", ge=1
    )
    gpus_per_worker: int = setting(
        1, "GPUs of the one worker over which one model is spread, layer by layer.", group="cluster", ge=1
    )
    threads: int | None = setting(
        None, "Threads of a worker (default: the machine's cores over its workers).", group="cluster", ge=1
    )
    max_failures: int = setting(
        2, "How often a lost worker is replaced, from the newest checkpoint.", group="cluster", ge=-1
    )
    max_preemption_failures: int = setting(
        -1,
        "How often workers are replaced whose node was taken away (spot machines); -1: always.",
        group="cluster",
        ge=-1,
    )
    fsdp: str = setting(
        "", "Shard the model over the workers: 'full_shard auto_wrap' ('offload': into CPU memory).", group="cluster"
    )
    fsdp_transformer_layer_cls_to_wrap: str | None = setting(
        None, "Class of the layers that FSDP wraps (found from the model if not given).", group="cluster"
    )
    deepspeed: str | None = setting(
        None, "DeepSpeed configuration, a JSON file such as jobs/configs/deepspeed_zero3.json.", group="cluster"
    )

    training_arguments: dict[str, Any] = setting({}, "Further fields of TrainingArguments.")

    @classmethod
    def passthrough_names(cls) -> set[str]:
        """Return the other fields of the installed TrainingArguments, and the retired ones."""
        return (set(training_argument_names()) | RETIRED | REFUSED.keys()) - cls.model_fields.keys()

    @classmethod
    def dialect(cls, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the dialect that the flag naming the model chose, and its defaults."""
        return choose(given)

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the largest number of workers."""
        return worker_range(self.num_workers)

    @property
    def ends_samples(self) -> bool:
        """Whether samples that were not cut end with the end token.

        In Alpaca-LoRA's ``finetune.py`` the flag reaches only the prompt that is tokenised to be masked, and is taken
        back there; the whole sample gets the end token whatever it says.
        """
        return self.add_eos_token or self.spoken == "Alpaca-LoRA"

    @field_validator("num_workers", mode="before")
    @classmethod
    def _as_workers(cls, value: Any) -> int | str:
        return parse_workers(value)

    @field_validator("wandb_watch", "wandb_log_model", mode="before")
    @classmethod
    def _as_wandb_writes_it(cls, value: Any) -> Any:
        """Turn what YAML and the command line make of a boolean into wandb's own words."""
        words = {"no": "false", "yes": "true", "false": "false", "true": "true"}
        return words.get(value.strip().lower(), value) if isinstance(value, str) else value

    @field_validator("lora_target_modules", "report_to", "data_path", mode="after")
    @classmethod
    def _take_apart(cls, values: list[str], info: ValidationInfo) -> list[str]:
        """Accept ``q_proj,v_proj`` as two names; a path may hold a comma, so data_path is only checked."""
        if info.field_name != "data_path":
            for value in values:
                if "[" in value or "]" in value:  # a whole list in brackets has been taken apart by now
                    raise ValueError(f"{value!r}: a bracket without its other half: write a,b, or '[a,b]' in quotes")
            values = [part.strip() for value in values for part in value.split(",") if part.strip()]
        if not values:
            raise ValueError("needs at least one value")
        return values

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        check_licence(self.license)
        if self.bf16 and self.fp16:
            raise ValueError("--bf16 and --fp16 contradict each other: give one of them")
        if self.fsdp.strip() and self.deepspeed:
            raise ValueError("--fsdp and --deepspeed contradict each other: give one of them")
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite contradict each other: give one of them")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"--max_steps {self.max_steps}: must be above 0 (or -1: by epochs)")
        if self.val_set_size >= 1 and self.val_set_size != int(self.val_set_size):
            raise ValueError(f"--val_set_size {self.val_set_size}: a count must be whole, a share below 1")
        if self.val_set_size == 0 and (self.load_best_model_at_end or self.save_strategy == "best"):
            flag = "load_best_model_at_end" if self.load_best_model_at_end else "save_strategy best"
            raise ValueError(f"--{flag} needs a validation loss: give --val_set_size")
        for name, value in self.training_arguments.items():
            if name in REFUSED and value not in ACCEPTED.get(name, ()):
                raise ValueError(f"--{name} is not taken here: {REFUSED[name]}")
        return self
