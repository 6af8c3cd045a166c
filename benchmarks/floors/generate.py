"""The least that any Ray Data program does before its first request: start Ray, an actor, an openai client."""

import argparse
import json
import time

import openai
import ray


class Ask:
    def __init__(self, base_url: str) -> None:
        self.client = openai.OpenAI(base_url=base_url, api_key="none")

    def __call__(self, batch: dict) -> dict:
        self.client.completions.create(model="floor", prompt="hello", max_tokens=8)
        return batch


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("base_url", help="an OpenAI-compatible endpoint, http://host:port/v1")
arguments = parser.parse_args()
started = time.monotonic()
ray.init(address="local", logging_level="warning")
pool = ray.data.ActorPoolStrategy(size=1)
ray.data.from_items([0]).map_batches(
    Ask, compute=pool, fn_constructor_args=(arguments.base_url,), num_cpus=0
).materialize()
print(json.dumps({"seconds_from_imports": round(time.monotonic() - started, 2)}))
