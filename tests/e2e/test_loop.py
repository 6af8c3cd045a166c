"""The whole loop with the embedded model: real generation, training and serving, each in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from e2e_support import ROOT, DemoRun

from alpaca_ray.prompts import load_template
from alpaca_ray.records import read_records
from alpaca_ray.testing.processes import free_port, running

ADAPTER = "alpaca-demo"
pytestmark = pytest.mark.timeout(1200)


def test_it_ends_well_and_prints_its_table(demo: DemoRun) -> None:
    assert demo.returncode == 0, demo.output[-4000:]
    for expected in ("records kept", "validation loss before", "validation loss after", "[embedded]", f"[{ADAPTER}]"):
        assert expected in demo.output
    assert (demo.folder / "report.html").is_file()


def test_new_records_passed_every_filter(demo: DemoRun) -> None:
    records = read_records(str(demo.folder / "records"))
    seeds = {record["instruction"] for record in read_records("seeds")}
    assert len(records) == 4
    assert not {record["instruction"] for record in records} & seeds
    assert all(len(record["most_similar_instructions"]) == 10 for record in records)
    assert all(max(record["most_similar_instructions"].values()) <= 0.7 for record in records)
    metrics = json.loads((demo.folder / "records" / "metrics.json").read_text())
    assert metrics["kept"] == 4
    rejected = (demo.folder / "records" / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == sum(metrics["rejected"].values())


def test_validation_loss_falls_on_the_same_split(demo: DemoRun) -> None:
    folder = demo.folder / "adapters" / ADAPTER
    run = json.loads((folder / "run.json").read_text())
    assert run["validation_loss_after"] < run["validation_loss_before"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval_loss"] for row in rows if row.get("eval_loss") is not None]
    assert losses[0] == pytest.approx(run["validation_loss_before"])
    assert losses[-1] == pytest.approx(run["validation_loss_after"])
    held_out = json.loads((folder / "heldout_ids.json").read_text())
    assert held_out
    known = {record["id"] for source in ("seeds", str(demo.folder / "records")) for record in read_records(source)}
    assert set(held_out) <= known


def test_the_loops_parts_know_each_other(demo: DemoRun) -> None:
    records = json.loads((demo.folder / "records" / "run.json").read_text())
    trained = json.loads((demo.folder / "adapters" / ADAPTER / "run.json").read_text())
    assert records["run_id"] in [entry.get("parent_run") for entry in trained["inputs"]]
    config = json.loads((demo.folder / "adapters" / ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded"


@pytest.fixture(scope="module")
def served(demo: DemoRun, tmp_path_factory: pytest.TempPathFactory):
    """``serve run`` with the shipped config, on a free port and with the demo's adapters; yields its base URL."""
    port, scratch = free_port(), tmp_path_factory.mktemp("serve")
    config = yaml.safe_load((ROOT / "serve_configs" / "alpaca.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["adapters"] = str(demo.folder / "adapters")
    (scratch / "alpaca.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).parent / "serve"), "run", str(scratch / "alpaca.yaml")]
    log = scratch / "log"
    with log.open("w") as output, running(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as child:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and child.poll() is None:
            try:
                if httpx.get(f"{url}/v1/models", timeout=10).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            pytest.fail(f"the app did not answer:\n{log.read_text()[-4000:]}")
        yield url


def test_base_and_adapter_are_offered(served: str) -> None:
    client = openai.OpenAI(base_url=f"{served}/v1", api_key="none")
    assert {"embedded", ADAPTER} <= {model.id for model in client.models.list()}


def test_greedy_answers_of_base_and_adapter_differ(served: str) -> None:
    client = openai.OpenAI(base_url=f"{served}/v1", api_key="none", timeout=120)
    prompts = [load_template("stanford").format(record) for record in read_records("seeds")[:4]]

    def answers(model: str) -> list[str]:
        # One by one: in bf16 the rows of a batch round by who stands beside them, and that is a matter of timing.
        asked = [client.completions.create(model=model, prompt=one, max_tokens=24, temperature=0) for one in prompts]
        return [reply.choices[0].text for reply in asked]

    base, adapter = answers("embedded"), answers(ADAPTER)
    assert base != adapter
    assert answers(f"embedded:{ADAPTER}") == adapter
    assert answers("embedded") == base


def test_streaming_equals_not_streaming(served: str) -> None:
    client = openai.OpenAI(base_url=f"{served}/v1", api_key="none", timeout=120)
    ask = {
        "model": ADAPTER,
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**ask).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(pieces) == whole
    assert whole


def test_curl_works_as_it_is(served: str) -> None:
    body = json.dumps({"model": "embedded", "prompt": "Hello", "max_tokens": 3, "stream": True})
    command = ["curl", "-sN", f"{served}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    assert all(json.loads(event)["object"] == "text_completion" for event in events[:-1])
