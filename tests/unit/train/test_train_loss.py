"""The head's loss in chunks against torch's cross-entropy over whole logits, and in the Trainer's place."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from alpaca_ray.train import loss
from alpaca_ray.train.encode import IGNORE_INDEX


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", {"cpu": 3 * 50})  # three positions


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_loss_and_every_gradient_equal_torchs(smoothing: float, softcap: float | None, has_bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    bias = torch.randn(50, requires_grad=True) if has_bias else None
    targets = torch.randint(0, 50, (10,))
    targets[[2, 7]] = IGNORE_INDEX
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]

    ours = loss.HeadLoss.apply(hidden, weight, bias, targets, smoothing, softcap)
    logits = linear(hidden, weight, bias)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    theirs = cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    for mine, right in zip(
        torch.autograd.grad(ours * 0.3, inputs), torch.autograd.grad(theirs * 0.3, inputs), strict=True
    ):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


def test_without_gradients_only_the_loss_is_computed() -> None:
    head = torch.nn.Linear(8, 50)
    with torch.no_grad():
        found = loss.HeadLoss.apply(torch.randn(4, 8), head.weight, head.bias, torch.tensor([1, 2, 3, 4]), 0.0, None)
    assert found.item() > 0
    assert found.grad_fn is None


def test_positions_without_a_label_have_no_weight() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    found = loss.HeadLoss.apply(hidden, torch.randn(50, 8), None, torch.full((4,), IGNORE_INDEX), 0.0, None)
    found.backward()
    assert found.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_a_models_logits_become_its_loss_and_come_back(family: str) -> None:
    import transformers as hf

    common = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = {
        "llama": lambda: hf.LlamaConfig(**common, intermediate_size=16),
        "gemma2": lambda: hf.Gemma2Config(
            **common, intermediate_size=16, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1
        ),
        "opt": lambda: hf.OPTConfig(**common, ffn_dim=16, word_embed_proj_dim=16, dropout=0.0),
    }
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configs[family](), dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits
    head = loss.head_of(model)
    assert head is not None
    keep = torch.tensor([0, 2])
    targets = torch.tensor([[6, 8]])
    with loss.loss_in_head(model, head, targets, 0.0):
        found = model(input_ids=ids, logits_to_keep=keep).logits
    torch.testing.assert_close(found, cross_entropy(before[0, keep], targets[0], reduction="sum"))
    torch.testing.assert_close(model(input_ids=ids).logits, before, atol=0, rtol=0)
