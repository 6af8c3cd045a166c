"""Merging: what the merged model answers is what base and adapter answer together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export_support import load, logits, make_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alpaca_ray.errors import ModelError, OutputError
from alpaca_ray.export.merge import merge
from alpaca_ray.manifest import file_digest, read_manifest
from alpaca_ray.prompts import STANFORD
from alpaca_ray.settings.export import MergeSettings

PATTERNS = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 32, "0.self_attn.q_proj": 3}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": PATTERNS,
    "patterns, rank-stabilised": {**PATTERNS, "use_rslora": True},
    "all linear layers": {"target_modules": "all-linear"},
    "tied embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tied head": {"target_modules": ["lm_head", "down_proj"]},
    "some layers": {"layers_to_transform": [1]},
    "DoRA": {"use_dora": True},
    "DoRA, rank-stabilised": {"use_dora": True, "use_rslora": True, **PATTERNS, "target_modules": "all-linear"},
    "DoRA of an embedding": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["norm"]},
    "head saved whole": {"modules_to_save": ["lm_head"]},
}
THROUGH_PEFT = ("DoRA of an embedding", "modules_to_save", "head saved whole")


def run(adapter: Path, output: Path, **settings: Any) -> Path:
    return merge(MergeSettings(adapter=str(adapter), output_dir=str(output), **settings))


def same_answers(base: Path, adapter: Path, merged: Path) -> None:
    expected = logits(base, adapter)
    assert (logits(base) - expected).abs().max() > 1e-2  # the adapter changes something
    assert (logits(merged) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_merged_logits_are_those_of_base_and_adapter(
    kind: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter", **KINDS[kind])
    same_answers(tiny_llama, adapter, run(adapter, tmp_path / "out"))
    assert ("through peft" in capsys.readouterr().out) == (kind in THROUGH_PEFT)


@pytest.mark.parametrize("config", [{}, {"lora_bias": True}, {"bias": "all"}])
def test_other_families_and_their_biases_merge_too(config: dict[str, Any], tiny_opt: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_opt, tmp_path / "adapter", target_modules=["q_proj", "fc1"], **config)
    same_answers(tiny_opt, adapter, run(adapter, tmp_path / "out"))


def test_what_peft_cannot_merge_is_refused_in_its_words(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(ModelError, match=r"peft cannot merge it .* the base layer has no bias"):
        run(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_layers_that_lie_the_other_way_round_merge_too(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=512, n_positions=64)).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    same_answers(base, adapter, run(adapter, tmp_path / "out"))
    # As the first checkpoints of this family call their tensors.
    weights = {
        name.removeprefix("transformer."): value for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    merged = run(adapter, tmp_path / "old_names")
    same_answers(base, adapter, merged)
    assert load_file(merged / "model.safetensors").keys() == weights.keys()


def test_weights_that_are_pickles_merge_too(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((tiny_llama / name).read_bytes())
    torch.save(load_file(tiny_llama / "model.safetensors"), base / "pytorch_model.bin")
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    merged = run(adapter, tmp_path / "out", base_model=str(base))
    assert (logits(merged) - logits(tiny_llama, adapter)).abs().max() < 1e-4


def test_shards_hold_what_one_file_holds(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    whole = load_file(run(adapter, tmp_path / "one") / "model.safetensors")
    folder = run(adapter, tmp_path / "many", max_shard_size="30KB")
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(shards) > 3
    together = {name: value for shard in shards for name, value in load_file(shard).items()}
    assert together.keys() == whole.keys()
    assert all(torch.equal(together[name], whole[name]) for name in whole)
    assert (logits(folder) - logits(tiny_llama, adapter)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["plain", "DoRA", "modules_to_save"])
def test_sums_are_rounded_once_to_the_type_asked_for(dtype: str, kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter", **KINDS[kind])
    exact = load_file(run(adapter, tmp_path / "exact") / "model.safetensors")
    folder = run(adapter, tmp_path / "rounded", dtype=dtype)
    rounded = load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    kind_of = getattr(torch, dtype)
    for name, value in exact.items():
        assert rounded[name].dtype == kind_of
        # Where peft merges, the base is rounded before the sum, too.
        scale = 3 if kind in THROUGH_PEFT else 1
        error = (rounded[name].float() - value).abs().max()
        assert error <= scale * torch.finfo(kind_of).eps / 2 * value.abs().max(), name
    assert load(folder, dtype="auto").dtype == kind_of


@pytest.mark.parametrize("kind", ["plain", "DoRA", "modules_to_save"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_whose_training_diverged_is_refused(
    kind: str, value: float, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter", **KINDS[kind])
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "q_proj.lora_B" in name)
    weights[name][0, 0] = value
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"merged, .*q_proj\.weight holds values that are no numbers or too large"):
        run(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_value_too_large_for_float16_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter", lora_alpha=10_000_000)
    with pytest.raises(ModelError, match=r"q_proj\.weight holds values too large for it: give bfloat16"):
        run(adapter, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_what_the_adapter_was_trained_with_travels_along(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    (adapter / "prompt_template.json").write_text(STANFORD.to_json())
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    folder = run(adapter, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (tiny_llama / name).read_bytes()
    for name in ("prompt_template.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (adapter / name).read_bytes()
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["stage"], manifest["command"], manifest["base_model"]) == ("export", "merge", str(tiny_llama))
    assert {*manifest["outputs"], "run.json"} == {path.name for path in folder.iterdir()}
    assert manifest["inputs"][1]["sha256"] == file_digest(adapter / "adapter_model.safetensors")


def test_files_of_others_stay_and_nothing_is_replaced_unasked(tiny_llama: Path, tmp_path: Path) -> None:
    adapter, output = make_adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    run(adapter, output, max_shard_size="30KB")
    with pytest.raises(OutputError, match="give --overwrite"):
        run(adapter, output)
    run(adapter, output, overwrite=True)
    assert not list(output.glob("model-*"))  # the shards of the first are gone
    assert (output / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


@pytest.mark.parametrize("present", ["config.json", "adapter_config.json", "other.safetensors"])
def test_somebody_elses_model_is_never_written_into(present: str, tiny_llama: Path, tmp_path: Path) -> None:
    adapter, output = make_adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out"
    output.mkdir()
    (output / present).write_text("{}")
    with pytest.raises(OutputError, match=f"already holds {present}, which no export wrote"):
        run(adapter, output, overwrite=True)
    assert (output / present).read_text() == "{}"


def test_a_run_killed_while_it_moved_its_files_is_started_anew(tiny_llama: Path, tmp_path: Path) -> None:
    adapter, output = make_adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / ".export_files.json").write_text('{"files": ["model.safetensors", "config.json"]}')
    (output / "model.safetensors").write_text("half")
    left = tmp_path / ".out.export-abcd1234"
    left.mkdir()
    other = tmp_path / ".out.export-b.export-abcd1234"  # of an export into `out.export-b` that is at work
    other.mkdir()
    with pytest.raises(OutputError, match="give --overwrite"):
        run(adapter, output)
    run(adapter, output, overwrite=True)
    same_answers(tiny_llama, adapter, output)
    assert not left.exists()
    assert other.exists()
    assert not (output / ".export_files.json").exists()
    assert (output / "notes.txt").read_text() == "mine"


def edited(adapter: Path, **changes: Any) -> Path:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return adapter


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"peft_type": "IA3"}, "is of the kind IA3: only LORA adapters can be merged"),
        ({"base_model_name_or_path": "decapoda-research/llama-7b-hf"}, "successor is huggyllama/llama-7b: give --base"),
        ({"base_model_name_or_path": None}, "names no base model: give --base_model"),
        ({"base_model_name_or_path": "/nowhere/to/be/found"}, "no such folder: give --base_model"),
        ({"r": 8}, "gives model.layers.0.self_attn.q_proj the rank 8, its weights have 4"),
        ({"rank_pattern": {"q_proj(": 3}}, "the pattern 'q_proj(' is no regular expression"),
        ({"lora_alpha": None}, "gives model.layers.0.self_attn.q_proj no lora_alpha"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(
    changes: dict[str, Any], text: str, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = edited(make_adapter(tiny_llama, tmp_path / "adapter"), **changes)
    with pytest.raises(ModelError) as caught:
        run(adapter, tmp_path / "out")
    assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(tiny_llama: Path, tiny_opt: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"another model: the base has no model\.layers\.0\.self_attn\.q_proj"):
        run(adapter, tmp_path / "out", base_model=str(tiny_opt))
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    save_file({**weights, name: torch.ones(4, 48)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.v_proj changes a weight of \(16, 48\), .* \(16, 32\)"):
        run(adapter, tmp_path / "out")


def test_a_quantised_base_and_missing_or_cut_files_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((tiny_llama / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(ModelError, match="its weights are quantised"):
        run(adapter, tmp_path / "out", base_model=str(base))
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="holds no weights"):
        run(adapter, tmp_path / "out", base_model=str(base))
    content = (tiny_llama / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-200])
    with pytest.raises(
        ModelError, match=r"model\.safetensors: is cut off within tensor model\.layers\.1\.self_attn\.v_proj"
    ):
        run(adapter, tmp_path / "out", base_model=str(base))
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00001-of-00002\.safetensors is missing"):
        run(adapter, tmp_path / "out", base_model=str(base))


def test_an_adapter_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^--adapter /nowhere/at/all: no such folder$"):
        run(Path("/nowhere/at/all"), tmp_path / "out")


def test_added_tokens_that_an_adapter_brings_are_kept(tiny_llama: Path, tmp_path: Path) -> None:
    """As trainers save them that add tokens: the whole embedding and head beside the adapter."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(2)
    model = load(tiny_llama)
    model.resize_token_embeddings(515, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    folder = run(tmp_path / "adapter", tmp_path / "out", base_model=str(tiny_llama))
    base = load(tiny_llama)
    base.resize_token_embeddings(515, mean_resizing=False)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    expected = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = torch.arange(503, 515)[None]
    with torch.no_grad():
        found = load(folder)(tokens).logits
        assert found.shape[-1] == 515
        assert (found - expected(tokens).logits).abs().max() < 1e-4


def test_the_job_answers_with_one_line_and_writes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    job = Path(__file__).resolve().parents[3] / "jobs" / "export.py"
    command = [sys.executable, str(job), "merge", "--adapter", str(tiny_llama), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"error: --adapter {tiny_llama}: holds no adapter, adapter_config.json is missing\n"
    assert not (tmp_path / "out").exists()


MEASURE = """
import sys, torch, transformers, peft
from pathlib import Path
from alpaca_ray.export import merge, model, record, skeleton
from alpaca_ray.settings.export import MergeSettings
adapter, output = sys.argv[1:3]
opened = model.find_origin(adapter=adapter, output=Path(output))
skeleton.skeleton_of(opened.folder, flag="")  # what the libraries load when a model is built counts for them
before = record.peak_memory()
merge.merge(MergeSettings(adapter=adapter, output_dir=output))
print("RESULT", record.peak_memory() - before, opened.weights.nbytes)
"""


def test_a_model_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_hidden_layers": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, tie_word_embeddings=True, **shape))
    model.save_pretrained(tmp_path / "base")
    del model
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter")
    command = [sys.executable, "-c", MEASURE, str(adapter), str(tmp_path / "out")]
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    more, whole = (int(word) for word in line.split()[1:])
    assert whole > 100e6
    assert more < whole / 4
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as merged:
        assert len(list(merged.keys())) == 2 + 9 * 8
