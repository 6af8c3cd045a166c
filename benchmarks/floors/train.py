"""The least that any LoRA run on Ray Train does until its first step has been taken.

Start Ray and one worker, load the model, add an adapter, one forward and backward pass.
"""

import argparse
import json
import tempfile
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def step(config: dict) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    ids = tokenizer("one sample " * 100, return_tensors="pt").input_ids
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    print("FIRST STEP", flush=True)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="folder of a causal language model")
arguments = parser.parse_args()
started = time.monotonic()
ray.init(address="local", logging_level="warning")
with tempfile.TemporaryDirectory() as storage:
    TorchTrainer(
        step,
        train_loop_config={"model": arguments.model},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=storage, name="floor"),
    ).fit()
print(json.dumps({"seconds_from_imports": round(time.monotonic() - started, 2)}))
