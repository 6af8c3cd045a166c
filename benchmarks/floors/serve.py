"""The least that any Ray Serve app does before its first token: start Ray, Serve and one replica, load the model."""

import argparse
import json
import threading
import time

import ray
from ray import serve
from starlette.requests import Request


class Model:
    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)

    async def __call__(self, request: Request) -> str:
        ids = self.tokenizer((await request.json())["prompt"], return_tensors="pt").input_ids
        return str(self.tokenizer.decode(self.model.generate(ids, max_new_tokens=1)[0, -1:]))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="folder of a causal language model")
parser.add_argument("port", type=int, help="port to listen on; runs until interrupted")
arguments = parser.parse_args()
started = time.monotonic()
ray.init(address="local", logging_level="warning")
serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
serve.run(serve.deployment(Model).bind(arguments.model), route_prefix="/v1/completions")
print(json.dumps({"seconds_from_imports": round(time.monotonic() - started, 2)}), flush=True)
threading.Event().wait()
