"""What the installed transformers' TrainingArguments takes, known without importing it."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

# Fields that TrainingArguments once had and that change no result: accepted, so that old commands keep running.
RETIRED = frozenset(
    {
        "logging_dir",
        "save_safetensors",
        "half_precision_backend",
        "fp16_backend",
        "fp16_opt_level",
        "local_rank",
        "use_legacy_prediction_loop",
        "do_train",
        "do_eval",
    }
)
# Fields of TrainingArguments that would contradict what this program does itself.
REFUSED = {
    "use_cpu": "use --use_gpu false",
    "no_cuda": "use --use_gpu false",
    "save_only_model": "such checkpoints cannot be resumed (--save_total_limit saves room)",
    "auto_find_batch_size": "set --per_device_train_batch_size",
    "dataloader_drop_last": "every sample is trained on once an epoch",
    "train_sampling_strategy": "use --group_by_length",
    "length_column_name": "lengths are counted here",
    "eval_on_start": "the validation loss is always taken before the first step",
    "average_tokens_across_devices": "the loss is always the mean over all tokens of a step",
    "logging_nan_inf_filter": "a loss that is no number must be seen: it stops the run",
    "metric_for_best_model": "the best checkpoint is the one with the lowest validation loss",
    "greater_is_better": "the best checkpoint is the one with the lowest validation loss",
}
# Values of these that say what is done in any case.
ACCEPTED: dict[str, tuple[object, ...]] = {
    "logging_nan_inf_filter": (False,),
    "metric_for_best_model": ("loss", "eval_loss"),
    "greater_is_better": (False,),
}


@cache
def training_argument_names() -> frozenset[str]:
    """Return the fields of the installed TrainingArguments, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(spec.submodule_search_locations[0]) / "training_args.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
            return frozenset(
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and not item.target.id.startswith("_")
                and "ClassVar" not in ast.unparse(item.annotation)
            )
    return frozenset()
