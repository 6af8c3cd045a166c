"""Meta's layout, read back by a Llama written from its paper and Meta's conventions: complex rotation of neighbours."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from export_support import TOKENS, load, logits
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from alpaca_ray.errors import ModelError
from alpaca_ray.export.llama import feed_forward, feed_forward_width, params
from alpaca_ray.export.state_dict import state_dict
from alpaca_ray.settings.export import StateDictSettings


def run(model: Path, output: Path, **settings: Any) -> Path:
    return state_dict(StateDictSettings(model=str(model), output_dir=str(output), **settings))


def turned(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate neighbouring pairs of ``x`` ``(batch, positions, heads, size)`` as complex numbers."""
    positions, size = x.shape[1], x.shape[3]
    speed = theta ** (-torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones(1).double(), torch.outer(torch.arange(positions).double(), speed))
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:3], -1, 2))
    return torch.view_as_real(pairs * turn[None, :, None]).flatten(3).float()


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def meta_logits(folder: Path) -> torch.Tensor:
    """Return the logits of ``TOKENS`` by the two files alone."""
    p = json.loads((folder / "params.json").read_text())
    w = torch.load(folder / "consolidated.00.pth", weights_only=True)
    heads, eps = p["n_heads"], p["norm_eps"]
    kv_heads, size = p.get("n_kv_heads", heads), p["dim"] // heads
    x = w["tok_embeddings.weight"][TOKENS]
    batch, positions, _ = x.shape
    hidden = feed_forward_width(p["dim"], p["multiple_of"], p.get("ffn_dim_multiplier"))
    unseen = torch.full((positions, positions), float("-inf")).triu(1)
    for layer in range(p["n_layers"]):
        part = {name: w[f"layers.{layer}.{name}.weight"] for name in ("attention_norm", "ffn_norm")}
        wq, wk, wv, wo = (w[f"layers.{layer}.attention.w{name}.weight"] for name in "qkvo")
        w1, w2, w3 = (w[f"layers.{layer}.feed_forward.w{number}.weight"] for number in "123")
        assert w1.shape == (hidden, p["dim"])
        y = normed(x, part["attention_norm"], eps)
        q = turned((y @ wq.T).view(batch, positions, heads, size), p.get("rope_theta", 10000.0))
        k = turned((y @ wk.T).view(batch, positions, kv_heads, size), p.get("rope_theta", 10000.0))
        v = (y @ wv.T).view(batch, positions, kv_heads, size)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=2) for part in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / size**0.5 + unseen
        x = x + torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2) @ wo.T
        y = normed(x, part["ffn_norm"], eps)
        x = x + (torch.nn.functional.silu(y @ w1.T) * (y @ w3.T)) @ w2.T
    return normed(x, w["norm.weight"], eps) @ w["output.weight"].T


def make(folder: Path, **config: Any) -> Path:
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 512}
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, "intermediate_size": 192, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform attention, so that the order of rows shows
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ],
)
def test_metas_arithmetic_gives_the_same_logits(config: dict[str, Any], tmp_path: Path) -> None:
    model = make(tmp_path / "model", **config)
    folder = run(model, tmp_path / "out")
    expected = logits(model)
    assert (meta_logits(folder) - expected).abs().max() < 1e-4 * expected.abs().max()
    content = torch.load(folder / "consolidated.00.pth", weights_only=True)
    q = load(model).model.layers[0].self_attn.q_proj.weight
    wq = content["layers.0.attention.wq.weight"]
    assert not torch.equal(q, wq)
    # The other way round, written out row by row: Meta's row 2i of a head is row i, its row 2i + 1 row i + half.
    back = torch.empty_like(wq)
    for head in range(4):
        for i in range(8):
            back[head * 16 + i], back[head * 16 + 8 + i] = wq[head * 16 + 2 * i], wq[head * 16 + 2 * i + 1]
    assert torch.equal(q, back)


def test_the_files_are_metas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(tmp_path / "model", tie_word_embeddings=True)
    (model / "tokenizer.model").write_bytes(b"pieces")
    folder = run(model, tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in folder.iterdir()) == [
        "consolidated.00.pth",
        "params.json",
        "run.json",
        "tokenizer.model",
    ]
    content = torch.load(folder / "consolidated.00.pth", weights_only=True)
    assert {value.dtype for value in content.values()} == {torch.float16}
    assert len(content) == 3 + 9 * 2
    assert content["output.weight"].data_ptr() == content["tok_embeddings.weight"].data_ptr()  # stored once
    assert zipfile.ZipFile(folder / "consolidated.00.pth").testzip() is None  # for readers that are not torch


@pytest.mark.parametrize(
    ("width", "hidden", "found"),
    [
        (4096, 11008, (256, None)),  # Llama 7B
        (5120, 13824, (256, None)),  # 13B
        (8192, 22016, (256, None)),  # 65B
        (4096, 14336, (256, 1.3)),  # Llama 3 8B (Meta writes 1024: the same width)
        (8192, 28672, (1024, 1.3)),  # Llama 2 70B (Meta writes 4096)
        (576, 1536, (256, None)),  # the embedded model
    ],
)
def test_the_feed_forward_width_comes_out(width: int, hidden: int, found: tuple[int, float | None]) -> None:
    assert feed_forward(width, hidden) == found
    assert feed_forward_width(width, *found) == hidden


@pytest.mark.parametrize("width", [32, 576, 2048, 3072, 5120])
@pytest.mark.parametrize("ratio", [0.7, 1.0, 2.0, 2.7, 3.5, 4.0])
def test_any_feed_forward_width_comes_out(width: int, ratio: float) -> None:
    for hidden in (int(width * ratio), int(width * ratio) + 1):
        assert feed_forward_width(width, *feed_forward(width, hidden)) == hidden


def test_llama_3s_positions_are_said(tmp_path: Path) -> None:
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(rope_parameters=scaled).to_dict()
    assert params(config)["use_scaled_rope"] is True
    assert params(config)["rope_theta"] == 500000.0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"attention_bias": True}, "attention_bias=True has no place"),
        ({"head_dim": 32}, "head_dim=32 has no place"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"embedding \(linear\) has no",
        ),
    ],
)
def test_a_llama_with_more_than_metas_is_refused(config: dict[str, Any], text: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", **config)
    with pytest.raises(ModelError, match=text):
        run(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    for name, meta in (("lm_head", "output"), ("model.layers.1.mlp.up_proj", "layers.1.feed_forward.w3")):
        less = {key: value for key, value in weights.items() if key != f"{name}.weight"}
        save_file(less, model / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"the checkpoint has no tensor for {meta}\.weight"):
            run(model, tmp_path / "out")
    save_file({**weights, "model.extra.weight": torch.ones(1)}, model / "model.safetensors")
    with pytest.raises(ModelError, match=r"tensor model\.extra\.weight has no place"):
        run(model, tmp_path / "out")
    del config["rms_norm_eps"]
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its config\.json gives no rms_norm_eps"):
        run(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_architectures_and_adapters_are_refused(tiny_opt: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is of the architecture opt; the original state dict exists for Llama only"):
        run(tiny_opt, tmp_path / "out")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a LoRA adapter: merge it into a model first"):
        run(tmp_path / "adapter", tmp_path / "out")
