"""The least that any Ray Serve app does before its first token: start Ray, Serve and one replica, load the model."""

import sys
import threading

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


ray.init(address="local", logging_level="warning")
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(serve.deployment(Model).bind(sys.argv[1]), route_prefix="/v1/completions")
threading.Event().wait()
