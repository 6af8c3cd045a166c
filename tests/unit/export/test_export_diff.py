"""Differences: recovered bit for bit, useless without the base, and refused when anything is not as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_support import break_byte, load, logits
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alpaca_ray.errors import ModelError, OutputError
from alpaca_ray.export import bits
from alpaca_ray.export.diff import diff_make
from alpaca_ray.export.recover import diff_recover
from alpaca_ray.settings.export import DiffMakeSettings, DiffRecoverSettings


def make(base: Path, tuned: Path, output: Path, **settings: Any) -> Path:
    return diff_make(DiffMakeSettings(base=str(base), tuned=str(tuned), output_dir=str(output), **settings))


def recover(base: Path, diff: Path, output: Path, **settings: Any) -> Path:
    return diff_recover(DiffRecoverSettings(base=str(base), diff=str(diff), output_dir=str(output), **settings))


def tune(base: Path, folder: Path, dtype: torch.dtype = torch.float32, more_tokens: int = 0) -> Path:
    """Write a model near to ``base``, with added tokens as Stanford's trainer adds them."""
    torch.manual_seed(5)
    model, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    if more_tokens:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        model.resize_token_embeddings(512 + more_tokens, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "prompt_template.json").write_text("{}")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same_bits(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and ours[name].numpy(force=True).tobytes() == theirs[name].numpy(force=True).tobytes()
        if ours[name].dtype != torch.bfloat16
        else torch.equal(ours[name].view(torch.int16), theirs[name].view(torch.int16))
        for name in ours
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("more_tokens", [0, 3])
def test_recovery_is_bitwise_the_tuned_model(
    dtype: torch.dtype, more_tokens: int, tiny_llama: Path, tmp_path: Path
) -> None:
    tuned = tune(tiny_llama, tmp_path / "tuned", dtype, more_tokens)
    diff = make(tiny_llama, tuned, tmp_path / "diff", max_shard_size="40KB")
    assert len(list(diff.glob("diff-*.safetensors"))) > 1
    recovered = recover(tiny_llama, diff, tmp_path / "recovered", max_shard_size="60KB")
    assert same_bits(tuned, recovered)
    assert not same_bits(tiny_llama, recovered)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "prompt_template.json"):
        left, right = (folder / name for folder in (tuned, recovered))
        if name == "config.json":
            assert json.loads(left.read_text()) == json.loads(right.read_text())
        else:
            assert left.read_bytes() == right.read_bytes()
    assert load(recovered).get_input_embeddings().weight.shape[0] == 512 + more_tokens
    assert json.loads((recovered / "run.json").read_text())["inputs"][0]["parent_run"]


def test_every_pattern_comes_back(tmp_path: Path, tiny_llama: Path) -> None:
    """Infinities, not-a-numbers with their payload, both zeros, and sums that wrap around."""
    for dtype, signed in ((torch.float16, torch.int16), (torch.bfloat16, torch.int16)):
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(signed)
        tuned, base = every.view(dtype), every.flip(0).roll(7).view(dtype)
        difference = bits.to_tensor(bits.patterns(tuned) - bits.patterns(base))
        back = bits.as_numbers(bits.patterns(base) + bits.patterns(difference), str(dtype).removeprefix("torch."))
        assert back.dtype == dtype
        assert torch.equal(back.view(signed), every)
    # What a difference in floats would have lost.
    large, small = torch.tensor([1e8]), torch.tensor([1.2345678])
    assert (small - large) + large != small
    exact = bits.patterns(large) + (bits.patterns(small) - bits.patterns(large))
    assert bits.as_numbers(exact, "float32") == small


def test_sums_are_exact_and_wrap() -> None:
    array = np.full(5, np.iinfo(np.uint64).max, dtype=np.uint64)
    assert bits.pattern_sum(array) == (5 * ((1 << 64) - 1)) % (1 << 64)
    assert bits.add((1 << 64) - 1, 2) == 1


def test_without_the_base_a_difference_is_no_model(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = tune(tiny_llama, tmp_path / "tuned", more_tokens=1)
    diff = make(tiny_llama, tuned, tmp_path / "diff")
    with pytest.raises(OSError, match="no file named"):
        load(diff)
    stored, real = load_file(diff / "diff.safetensors"), load_file(tuned / "model.safetensors")
    for name, value in stored.items():
        assert value.dtype == torch.int32
        # Not a single row of the tuned model's can be read in it, the added token's neither.
        same = value.view(torch.float32) == real[name]
        assert not same.reshape(same.shape[0], -1).all(dim=1).any() or same.ndim == 1
        assert same.float().mean() < 0.01


def test_a_head_of_its_own_is_held_against_the_tied_embedding(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tune(tiny_llama, tuned)
    content = load_file(tuned / "model.safetensors")
    content["lm_head.weight"] = content["model.embed_tokens.weight"] * 1.5
    save_file(content, tuned / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    diff = make(tiny_llama, tuned, tmp_path / "diff")
    assert same_bits(tuned, recover(tiny_llama, diff, tmp_path / "recovered"))


@pytest.fixture
def released(tiny_llama: Path, tmp_path: Path) -> Path:
    return make(tiny_llama, tune(tiny_llama, tmp_path / "tuned"), tmp_path / "diff")


def refused(base: Path, diff: Path, output: Path) -> str:
    with pytest.raises(ModelError) as caught:
        recover(base, diff, output)
    assert not output.exists()
    assert not list(output.parent.glob(f".{output.name}*"))
    return str(caught.value)


def test_a_changed_byte_names_its_tensor(released: Path, tiny_llama: Path, tmp_path: Path) -> None:
    break_byte(released / "diff.safetensors")
    text = refused(tiny_llama, released, tmp_path / "out")
    assert text.endswith("diff.safetensors: tensor model.norm.weight is corrupted: fetch the file again")


def test_values_that_changed_places_name_their_tensor(released: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """No sum sees this; the digest does."""
    content = load_file(released / "diff.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    content[name] = content[name].flip(0).contiguous()
    save_file(content, released / "diff.safetensors")
    assert f"tensor {name} is corrupted" in refused(tiny_llama, released, tmp_path / "out")


def test_a_cut_file_a_lost_tensor_and_a_changed_companion_are_named(
    released: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(released, copy)
    content = (copy / "diff.safetensors").read_bytes()
    (copy / "diff.safetensors").write_bytes(content[:-100])
    assert "is cut off within tensor model.norm.weight" in refused(tiny_llama, copy, tmp_path / "out")
    left = load_file(released / "diff.safetensors")
    del left["model.norm.weight"]
    save_file(left, copy / "diff.safetensors")
    assert "tensor model.norm.weight is not as diff.json describes it" in refused(tiny_llama, copy, tmp_path / "out")
    shutil.copy(released / "diff.safetensors", copy)
    break_byte(copy / "tokenizer.json")
    assert "tokenizer.json is missing or corrupted" in refused(tiny_llama, copy, tmp_path / "out")


def test_another_base_is_named(released: Path, tiny_llama: Path, tiny_opt: Path, tmp_path: Path) -> None:
    from alpaca_ray.testing.tiny import make_tiny_model

    other = make_tiny_model(tmp_path / "other", seed=9)
    text = refused(other, released, tmp_path / "out")
    assert "is not that of the base that the difference was made from" in text
    assert str(tiny_llama) in text
    assert "has no tensor model." in refused(tiny_opt, released, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"integrity_sum": 1}, "its integrity sum is not that of its tensors"),
        ({"format": "floats"}, "no description of a difference that this version can read"),
        ({"files": None}, "is damaged"),
    ],
)
def test_a_changed_description_is_refused(
    change: dict[str, Any], text: str, released: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    content = json.loads((released / "diff.json").read_text())
    (released / "diff.json").write_text(json.dumps({**content, **change}))
    assert text in refused(tiny_llama, released, tmp_path / "out")


def test_models_that_do_not_belong_together_are_refused(tiny_llama: Path, tiny_opt: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is of the architecture llama, the base opt"):
        make(tiny_opt, tiny_llama, tmp_path / "diff")
    tuned = tune(tiny_llama, tmp_path / "tuned")
    content = load_file(tuned / "model.safetensors")
    content["model.norm.weight"] = torch.ones(48)
    save_file(content, tuned / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensor model\.norm\.weight: has the shape \(48,\), in the base .* \(32,\)"):
        make(tiny_llama, tuned, tmp_path / "diff")
    assert not (tmp_path / "diff").exists()


def test_what_is_read_is_never_overwritten(released: Path, tiny_llama: Path, tmp_path: Path) -> None:
    recovered = recover(tiny_llama, released, tmp_path / "recovered")
    for again in (recovered, tmp_path / "x" / ".." / "recovered"):
        with pytest.raises(OutputError, match="is what is read"):
            make(tiny_llama, recovered, again, overwrite=True)
    with pytest.raises(OutputError, match="is what is read"):
        recover(tiny_llama, released, released, overwrite=True)
    assert same_bits(tmp_path / "tuned", recovered)


def stanford_difference(base: Path, tuned: Path, folder: Path) -> float:
    """Write ``tuned - base`` as the original's script does, with transformers, and return the sum it publishes."""
    ours, theirs = load(tuned), load(base)
    theirs.resize_token_embeddings(513, mean_resizing=False)
    old = theirs.get_input_embeddings().weight.data  # tied: the head's, too
    old[512:] = old[:512].mean(dim=0, keepdim=True)
    total = sum(value.sum() for value in ours.state_dict().values())
    head = ours.state_dict()["lm_head.weight"].sum()
    raw = theirs.state_dict()
    state = {name: value - raw[name] for name, value in ours.state_dict().items() if name != "lm_head.weight"}
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tuned / name, folder)
    return float(total - head)


def test_a_difference_in_stanfords_own_form_is_recovered(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = tune(tiny_llama, tmp_path / "tuned", more_tokens=1)
    total = stanford_difference(tiny_llama, tuned, tmp_path / "wdiff")
    recovered = recover(tiny_llama, tmp_path / "wdiff", tmp_path / "out", integrity_sum=total)
    assert (logits(recovered) - logits(tuned)).abs().max() < 1e-4
    ours, theirs = weights(recovered), weights(tuned)
    assert max((ours[name] - theirs[name]).abs().max() for name in theirs) < 1e-6
    with pytest.raises(ModelError, match="base or difference is corrupted, or another"):
        recover(tiny_llama, tmp_path / "wdiff", tmp_path / "again", integrity_sum=total + 1)
    assert not (tmp_path / "again").exists()
