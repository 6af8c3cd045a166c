"""Export: the most memory that each command of jobs/export.py takes beyond what its libraries do, and its seconds.

A Llama of `--parameters` random weights and adapters on all its linear layers are made first: LoRA, DoRA, and LoRA
beside a norm that was trained whole, which only peft can merge. Each command then runs in a process of its own; what
the process holds once the libraries are loaded and a tiny model has been built is taken off the peak. Beside them runs
what is usually done: peft's `merge_and_unload`, then `save_pretrained`. Peaks count pages of files that a process has
mapped (`VmHWM`); the machine can take those back at any time, so what is really needed is less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LAYERS = 24
RUN = """
import json, sys, time, torch, peft, transformers
from pathlib import Path
from alpaca_ray.export.record import peak_memory
from alpaca_ray.export.run import export
from jobs.export import COMMANDS
from alpaca_ray.settings.commands import parse_command
tiny = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
peft.get_peft_model(transformers.LlamaForCausalLM(tiny), peft.LoraConfig(target_modules=["q_proj"]))
arguments = json.loads(sys.argv[1])
before, start = peak_memory(), time.perf_counter()
if arguments[0] == "usual":
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments[1], dtype="auto")
    merged = peft.PeftModel.from_pretrained(model, arguments[2]).merge_and_unload()
    merged.save_pretrained(arguments[3])
else:
    export(parse_command(COMMANDS, arguments, description=""))
print("RESULT", json.dumps({"peak": peak_memory() - before, "seconds": time.perf_counter() - start}))
"""


def main() -> None:
    """Make the models, run each command, print a line for each and the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=5e8, help="parameters of the model (default: 5e8)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--folder", help="where the models and results go, and stay (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        size = _make_models(folder, int(arguments.parameters), arguments.dtype)
        rows: dict[str, dict[str, Any]] = {}
        for name, command in _commands(folder).items():
            found = _run(command)
            rows[name] = {
                "peak_over_model": round(found["peak"] / size, 3),
                "peak_mb": round(found["peak"] / 1e6, 1),
                "seconds": round(found["seconds"], 1),
            }
            share, seconds = rows[name]["peak_over_model"], rows[name]["seconds"]
            print(f"{name:<14} {share:6.3f} of the model  {seconds:6.1f} s", flush=True)
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"model_mb": round(size / 1e6, 1), "dtype": arguments.dtype, "commands": rows, **machine}))


def _commands(folder: Path) -> dict[str, list[str]]:
    def path(name: str) -> str:
        return str(folder / name)

    return {
        "usual merge": ["usual", path("base"), path("adapter"), path("usual")],
        "merge": ["merge", "--adapter", path("adapter"), "--output_dir", path("merged")],
        "merge by peft": ["merge", "--adapter", path("saved"), "--output_dir", path("merged_by_peft")],
        "merge, DoRA": ["merge", "--adapter", path("dora"), "--output_dir", path("merged_dora")],
        "state-dict": ["state-dict", "--model", path("merged"), "--output_dir", path("meta")],
        "diff make": ["diff", "make", "--base", path("base"), "--tuned", path("merged"), "--output_dir", path("diff")],
        "diff recover": [
            *["diff", "recover", "--base", path("base"), "--diff", path("diff"), "--output_dir", path("recovered")]
        ],
        "ollama": [
            *["ollama", "--adapter", path("adapter"), "--prompt_template", "alpaca", "--output_dir", path("ollama")]
        ],
    }


def _make_models(folder: Path, parameters: int, dtype: str) -> int:
    """Write base and adapter, and return the bytes of the base's weights. Llama 2's proportions, tied embeddings."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from alpaca_ray.export.weights import open_weights
    from alpaca_ray.testing.tiny import make_tiny_model

    width = max(64, 64 * round(math.sqrt(parameters / (12 * LAYERS)) / 64))
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=64 * round(width * 8 / 3 / 64),
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    make_tiny_model(folder / "base")  # its tokenizer
    (folder / "base" / "model.safetensors").unlink()
    model.save_pretrained(folder / "base")
    kinds: dict[str, dict[str, Any]] = {
        "adapter": {},
        "dora": {"use_dora": True},
        "saved": {"modules_to_save": ["norm"]},
    }
    for name, kind in kinds.items():
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **kind))
        with torch.no_grad():
            for parameter_name, parameter in adapted.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.01)
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
        adapted.save_pretrained(folder / name, save_embedding_layers=False)
        model = adapted.unload()
    return open_weights(folder / "base", flag="--base").nbytes


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(command)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(lines[0].removeprefix("RESULT "))
    return found


if __name__ == "__main__":
    main()
