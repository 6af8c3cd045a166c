"""Training: real (non-padding) tokens a second of this project, Stanford's padded loop and TRL's packed SFTTrainer.

All three train the same LoRA adapter on the same model in the same precision with the same optimiser, in turns within
one process; the first two on the same batches in the same order, TRL on rows that it packs itself (best fit
decreasing, in the best of the shapes that `--trl` names). Beside them stand the floor (the matrix products of a step at
the speed of a bare one) and Ray's own cost: the same trainer under torchrun and under Ray Train's TorchTrainer, with
the reports of a real run, in turns; once with every core at work, where the processes of Ray's head node take their
share of the same cores, and once with one core left to them. TRL is left out, with a message, where it is not
installed (`pip install '.[bench]'`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import torch  # noqa: E402

from alpaca_ray.machine import cores  # noqa: E402
from alpaca_ray.train import flops  # noqa: E402
from alpaca_ray.train.encode import IGNORE_INDEX  # noqa: E402
from benchmarks import contenders  # noqa: E402

ALPACA_SAMPLES = 52_002  # of Stanford's alpaca_data.json, which it learnt in three epochs


def main() -> None:
    """Run the turns, print a line for each and the JSON object."""
    options, flags = _parse()
    torch.set_num_threads(options.threads)
    if options.worker:
        print(json.dumps(_steps(options, flags)))
        return
    bench = contenders.prepare(flags, options.data_path, records=options.records, steps=options.steps)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {options.threads} threads, torch {torch.__version__}"
    if torch.cuda.is_available():
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    result: dict[str, Any] = {
        "machine": machine,
        "precision": bench.plan.precision,
        "samples_a_step": bench.plan.step_samples,
        "mean_tokens": round(statistics.mean(len(sample["input_ids"]) for sample in bench.samples), 1),
        "padding_factor": round(contenders.padding_factor(bench), 2),
    }
    print(json.dumps(result), flush=True)
    if not options.only_ray:
        result |= _speeds(bench, options)
    if not options.no_ray:
        result |= _ray_cost(options)
    print(json.dumps(result))


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every further flag is one of jobs/train.py, for all contenders: --lora_r 16, --full, ...",
    )
    parser.add_argument("--data_path", help="records (default: generated ones of Alpaca's shape)")
    parser.add_argument("--records", type=int, default=400, help="how many of them (default 400)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a turn (default 6)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--threads", type=int, default=cores(), help="threads (default: one a core)")
    parser.add_argument(
        "--trl", default="1x512,2x512,4x512", help="rows x tokens that TRL may pack (default %(default)s)"
    )
    parser.add_argument("--liger", action="store_true", help="give TRL its Liger kernels (GPU)")
    parser.add_argument("--no_ray", action="store_true", help="leave Ray's own cost out")
    parser.add_argument("--only_ray", action="store_true", help="measure nothing but Ray's own cost")
    parser.add_argument("--worker", choices=["torchrun", "ray"], help=argparse.SUPPRESS)
    return parser.parse_known_args()


def _speeds(bench: contenders.Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Time the contenders in turns; their order changes from turn to turn."""
    found = [contenders.ours(bench), contenders.stanford(bench)]
    if contenders.HAS_TRL:
        for shape in options.trl.split(","):
            rows, length = (int(number) for number in shape.split("x"))
            found.append(contenders.trl(bench, rows=rows, length=length, liger=options.liger))
            found[-1].name = f"trl {shape}"
    else:
        print("TRL is not installed and is left out (pip install '.[bench]')", flush=True)
    turns: dict[str, list[dict[str, float]]] = {one.name: [] for one in found}
    floors = []
    for number in range(options.turns):
        floors.append(floor(bench))
        for one in found[number % len(found) :] + found[: number % len(found)]:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            turn = one.turn()
            if torch.cuda.is_available():  # with the other contenders' weights, which lie on the device, too
                turn["peak_bytes"] = torch.cuda.max_memory_allocated()
            turns[one.name].append(turn)
            speed = turn["tokens"] / turn["seconds"]
            print(f"turn {number + 1}, {one.name}: {speed:.1f} real tokens/s", flush=True)

    def median(name: str, seconds: str = "seconds") -> float:
        return statistics.median(turn["tokens"] / turn[seconds] for turn in turns[name])

    rows_of = {
        name: {
            "tokens_per_second": round(median(name), 1),
            "tokens_per_processor_second": round(median(name, "cpu_seconds"), 1),
            "padding": round(1 - turns[name][0]["tokens"] / turns[name][0]["slots"], 3),
            **_on_gpu(bench, median(name), turns[name]),
        }
        for name in turns
    }
    packers = [name for name in turns if name.startswith("trl")]
    best = max(packers, key=median, default=None)

    def ratio(other: str) -> float:
        """Median over the turns of ours over another's, which ran in the same minute."""
        pairs = zip(turns["ours"], turns[other], strict=True)
        return round(
            statistics.median(
                (mine["tokens"] / mine["seconds"]) / (theirs["tokens"] / theirs["seconds"]) for mine, theirs in pairs
            ),
            2,
        )

    return {
        **rows_of,
        "minutes_for_alpaca": round(
            ALPACA_SAMPLES
            * 3
            * statistics.mean(len(sample["input_ids"]) for sample in bench.samples)
            / median("ours")
            / 60
        ),
        "floor_tokens_per_second": round(statistics.median(floors), 1),
        "ours_over_stanford": ratio("stanford"),
        "ours_over_trl": ratio(best) if best else None,
        "best_trl": best,
    }


def _on_gpu(bench: contenders.Bench, speed: float, turns: list[dict[str, float]]) -> dict[str, float]:
    """Return a contender's model FLOPs utilisation and peak memory; nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    share = flops.utilisation(speed, bench.parameters, bench.plan.mode, torch.cuda.get_device_name(), workers=1)
    peak = {"peak_gigabytes": round(max(turn["peak_bytes"] for turn in turns) / 1e9, 2)}
    return peak if share is None else {"model_flops_utilisation": round(share, 3), **peak}


def floor(bench: contenders.Bench) -> float:
    """Return the tokens a second at which a step's matrix products alone would run, at the speed of a bare one.

    Counted are the products with frozen weights (2 operations a weight forward, 2 backward; 2 more where the weight
    itself is trained), the head's at learnt positions only; adapters, attention and all else are left out.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from alpaca_ray.models import resolve_model

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve_model(bench.settings.model_name)))
    head = model.get_output_embeddings().weight.numel()
    layers = sum(module.weight.numel() for module in model.base_model.modules() if isinstance(module, torch.nn.Linear))
    learnt = sum(label != IGNORE_INDEX for sample in bench.samples for label in sample["labels"][1:])
    share = learnt / sum(len(sample["input_ids"]) for sample in bench.samples)
    passes = 6 if bench.plan.mode == "full" else 4
    device = "cuda" if bench.plan.use_gpu else "cpu"
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[bench.plan.precision]
    width = model.config.hidden_size
    x = torch.randn(1024, width, dtype=kind, device=device)
    weight = torch.randn(4 * width, width, dtype=kind, device=device)
    best = 0.0
    for _ in range(20):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(5):
            torch.nn.functional.linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * x.numel() * 4 * width / (time.perf_counter() - began))
    return best / (passes * (layers + share * head))


def _ray_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Time our trainer's steps under torchrun and under TorchTrainer, in turns."""
    found: dict[str, Any] = {}
    for threads in sorted({options.threads, max(1, options.threads - 1)}, reverse=True):
        times: dict[str, list[float]] = {"torchrun": [], "ray": []}
        for number in range(options.turns):
            for kind in ("torchrun", "ray") if number % 2 == 0 else ("ray", "torchrun"):
                times[kind].append(_timed(kind, threads))
                print(f"turn {number + 1}, {threads} threads, {kind}: {times[kind][-1]:.3f} s a step", flush=True)
        ratios = [under / plain for under, plain in zip(times["ray"], times["torchrun"], strict=True)]
        found[f"ray_cost_{threads}_threads"] = {
            "torchrun_step_seconds": round(statistics.median(times["torchrun"]), 4),
            "ray_step_seconds": round(statistics.median(times["ray"]), 4),
            "ray_cost": round(statistics.median(ratios) - 1, 4),
        }
    return found


def _timed(kind: str, threads: int) -> float:
    """Return the mean seconds of a step in a process of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"] if kind == "torchrun" else []
    command = [sys.executable, *launcher, __file__, *sys.argv[1:], "--worker", kind, "--threads", str(threads)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{kind} process failed:\n{done.stderr[-2000:]}")
    seconds: float = json.loads(done.stdout.splitlines()[-1])["step_seconds"]
    return seconds


def _steps(options: argparse.Namespace, flags: list[str]) -> dict[str, float]:
    """Return the mean seconds of a step, in this process or in a worker of Ray Train."""

    def train(config: dict[str, Any]) -> dict[str, float]:
        sys.path[:0] = [path for path in config["path"] if path not in sys.path]
        import torch

        from benchmarks import contenders

        torch.set_num_threads(options.threads)
        bench = contenders.prepare(flags, config["data_path"], records=options.records, steps=2 * options.steps)
        one = contenders.ours(bench)
        if config["reports"]:
            one.trainer.add_callback(contenders.RayReport())  # as often as a real run reports
        one.turn()
        ends = [end[0] for end in one.clock.ends]
        # The mean of all steps, which hold the same samples in both kinds of process.
        return {"step_seconds": (ends[-1] - ends[0]) / (len(ends) - 1)}

    data_path = str(Path(options.data_path).absolute()) if options.data_path else None
    config = {"path": [*sys.path], "data_path": data_path, "reports": options.worker == "ray"}
    if options.worker == "torchrun":
        return train(config)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from alpaca_ray import cluster

    cluster.connect(show_workers=False)
    trainer = TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1, use_gpu=torch.cuda.is_available()),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"),
        run_config=RunConfig(name="bench", storage_path=contenders.scratch()),
    )
    found: dict[str, float] = trainer.fit().return_value
    return found


if __name__ == "__main__":
    main()
