"""The proofs fail where something is broken on purpose, and pass where nothing is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_ray.errors import TrainingError
from alpaca_ray.prompts import STANFORD
from alpaca_ray.records import read_records
from alpaca_ray.train import proof_forward, proof_saved, proof_weights
from alpaca_ray.train.bare import bare_copy, gathered
from alpaca_ray.train.collate import packed, padded
from alpaca_ray.train.encode import Sample, encode
from alpaca_ray.train.evaluating import evaluating


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.config.use_cache = False
    return model.eval()


def samples_of(folder: Path) -> list[Sample]:
    from transformers import AutoTokenizer

    records = read_records("seeds")[:4]
    encoded = encode(records, AutoTokenizer.from_pretrained(folder), STANFORD, max_length=512)
    return proof_forward.probe_samples(encoded)


def check(model: Any, samples: Sequence[Sample], collate: Callable[..., Any], *, is_packed: bool = True) -> Any:
    precision = "bf16" if model.dtype == torch.bfloat16 else "fp32"

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(**batch).logits
        return logits

    return proof_forward.check_batches(
        forward,
        collate,
        samples,
        packed=is_packed,
        vocabulary=model.config.vocab_size,
        allowed=proof_forward.tolerance(precision, model.config.num_hidden_layers),
        leak_allowed=4 * proof_forward.ROUNDOFF[precision],
    )


def one_run(samples: Sequence[Sample], **options: Any) -> dict[str, Any]:
    """A packed batch whose positions never begin anew."""
    batch = packed(samples, **options)
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_batches_are_proven_in_both_families(tiny_llama: Path, tiny_opt: Path, dtype: torch.dtype) -> None:
    found = check(load(tiny_llama, dtype), samples_of(tiny_llama), packed)
    assert found["leak_distance"] == 0
    found = check(load(tiny_opt, dtype), samples_of(tiny_opt), lambda some: packed(some, block_mask=True))
    assert found["leak_distance"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_row_whose_samples_see_each_other_is_found(
    family: str, dtype: torch.dtype, tiny_llama: Path, tiny_opt: Path
) -> None:
    folder = {"llama": tiny_llama, "opt": tiny_opt}[family]
    with pytest.raises(TrainingError, match="samples of one batch see each other"):
        check(load(folder, dtype), samples_of(folder), one_run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_do_not_begin_anew_are_found_where_they_matter(tiny_opt: Path, dtype: torch.dtype) -> None:
    with pytest.raises(TrainingError, match="packed and padded logits differ by"):
        check(load(tiny_opt, dtype), samples_of(tiny_opt), lambda some: one_run(some, block_mask=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_held_against_each_sample_alone(side: Any, tiny_llama: Path, tiny_opt: Path) -> None:
    for folder in (tiny_llama, tiny_opt):
        model, samples = load(folder), samples_of(folder)
        check(model, samples, lambda some: padded(some, pad_id=0, side=side), is_packed=False)

    def unmasked(some: Sequence[Sample]) -> dict[str, Any]:
        batch = padded(some, pad_id=0, side="left")
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(**unmasked_batch(batch)).logits
        return logits

    def unmasked_batch(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    with pytest.raises(TrainingError, match="in a padded batch and alone differ"):
        proof_forward.check_batches(
            forward,
            lambda some: padded(some, pad_id=0, side="left"),
            samples,
            packed=False,
            vocabulary=512,
            allowed=1e-5,
            leak_allowed=1e-5,
        )


def test_logits_that_are_no_numbers_are_an_error(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="by inf"):
        check(model, samples_of(tiny_llama), packed)


def test_a_block_that_computes_with_other_weights_than_its_own_is_found(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    found = proof_forward.first_block(model)
    assert found is not None
    name, block = found
    assert name == "model.layers.0"
    batch = packed(samples_of(tiny_llama)[:1])

    def forward() -> Any:
        with torch.no_grad():
            return model(input_ids=batch["input_ids"])

    assert proof_forward.check_shards(forward, block, name, allowed=1e-6) == 0
    weight = block.mlp.down_proj.weight

    def changed(*_: Any) -> None:  # as an unsharding hook would that gathers the wrong shards
        weight.data = weight.data.flip(0)

    handle = block.register_forward_pre_hook(changed)
    undo = block.register_forward_hook(changed)
    with pytest.raises(TrainingError, match=r"model\.layers\.0: its sharded forward differs"):
        proof_forward.check_shards(forward, block, name, allowed=1e-6)
    handle.remove()
    undo.remove()


def test_a_bare_copy_computes_the_same_without_hooks(tiny_opt: Path) -> None:
    model = load(tiny_opt)
    layer = model.model.decoder.layers[0].fc1
    layer.register_forward_hook(lambda *_: torch.zeros(1))
    copy = bare_copy(layer, gathered(layer))
    x = torch.randn(3, 32)
    assert torch.equal(copy(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert layer(x).shape == (1,)


def adapted(folder: Path, targets: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", **options)
    return get_peft_model(load(folder), config)


@pytest.mark.parametrize(
    ("asked", "targets", "count"),
    [(["all-linear"], "all-linear", 28), (["q_proj", "v_proj"], ["q_proj", "v_proj"], 8), (["o_proj"], ["o_proj"], 4)],
)
def test_the_adapter_that_was_asked_for_is_proven(tiny_llama: Path, asked: list[str], targets: Any, count: int) -> None:
    model = adapted(tiny_llama, targets)
    assert proof_weights.check_trainable(model, asked) == count
    with pytest.raises(TrainingError, match=r"lora_[AB]\.default\.weight is (trained unasked|not trained)"):
        proof_weights.check_trainable(model, ["k_proj"])


def test_dora_brings_a_magnitude_for_each_layer(tiny_llama: Path) -> None:
    model = adapted(tiny_llama, ["q_proj"], use_dora=True)
    assert proof_weights.check_trainable(model, ["q_proj"], magnitudes=True) == 6
    with pytest.raises(TrainingError, match="lora_magnitude_vector"):
        proof_weights.check_trainable(model, ["q_proj"])


def test_a_base_weight_that_trains_and_an_adapter_that_does_not_are_found(tiny_llama: Path) -> None:
    model = adapted(tiny_llama, "all-linear")
    model.get_base_model().model.norm.weight.requires_grad = True
    with pytest.raises(TrainingError, match=r"model\.norm\.weight is trained unasked"):
        proof_weights.check_trainable(model, ["all-linear"])
    whole = load(tiny_llama)
    assert proof_weights.check_trainable(whole, None) == len(list(whole.parameters()))
    whole.model.norm.weight.requires_grad = False
    with pytest.raises(TrainingError, match=r"model\.norm\.weight is not trained and should be"):
        proof_weights.check_trainable(whole, None)


def test_a_weight_that_the_optimiser_lacks_is_found(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    parts = list(model.parameters())
    proof_weights.check_optimiser(model, torch.optim.SGD(parts))
    with pytest.raises(TrainingError, match="the optimiser does not have it"):
        proof_weights.check_optimiser(model, torch.optim.SGD(parts[1:]))
    parts[0].requires_grad = False
    with pytest.raises(TrainingError, match="holds 1 weights that are not trainable"):
        proof_weights.check_optimiser(model, torch.optim.SGD(parts))


def test_movement_is_seen(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    movement = proof_weights.Movement(model)
    assert not movement.moved(model)
    with torch.no_grad():
        model.model.norm.weight += 1
    assert movement.moved(model)


def tamper(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    values = load_file(file)
    change(values)
    save_file(values, file)


def spoil(values: dict[str, torch.Tensor]) -> None:
    values[min(values)].view(-1)[3] += 0.5


def blank(values: dict[str, torch.Tensor]) -> None:
    values[min(values)][:] = float("nan")


def drop(values: dict[str, torch.Tensor]) -> None:
    del values[min(values)]


def add(values: dict[str, torch.Tensor]) -> None:
    values["another"] = torch.zeros(1)


def cut(values: dict[str, torch.Tensor]) -> None:
    values[min(values)] = values[min(values)][:1].contiguous()


FAULTS = {
    spoil: "differs from memory by up to 0.5",
    blank: "not finite",
    drop: "lacks ",
    add: "holds another, which the model",
    cut: "has the shape",
}


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", ["lora", "dora", "full"])
def test_a_file_that_is_not_what_was_trained_is_found(mode: str, change: Any, tiny_llama: Path, tmp_path: Path) -> None:
    model = load(tiny_llama) if mode == "full" else adapted(tiny_llama, "all-linear", use_dora=mode == "dora")
    model.save_pretrained(tmp_path)
    check_file = proof_saved.check_model if mode == "full" else proof_saved.check_adapter
    assert check_file(model, tmp_path, writes=True) >= {"lora": 28, "dora": 42, "full": 20}[mode]
    tamper(tmp_path / ("model.safetensors" if mode == "full" else "adapter_model.safetensors"), change)
    with pytest.raises(TrainingError, match=f"what was saved is not what was trained: .*{FAULTS[change]}"):
        check_file(model, tmp_path, writes=True)


def test_a_file_that_is_cut_off_is_found(tiny_llama: Path, tmp_path: Path) -> None:
    model = adapted(tiny_llama, ["q_proj"])
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(TrainingError, match=r"what was saved is not what was trained: .*cut off"):
        proof_saved.check_adapter(model, tmp_path, writes=True)


def test_evaluation_leaves_4_bit_layers_as_they_train(tiny_llama: Path) -> None:
    class Linear4bit(torch.nn.Linear):
        """Bears the name of bitsandbytes' layer."""

    model = torch.nn.Sequential(torch.nn.Dropout(0.5), Linear4bit(2, 2))
    with evaluating(model):
        assert [part.training for part in model] == [False, True]
    assert [part.training for part in model] == [True, True]
