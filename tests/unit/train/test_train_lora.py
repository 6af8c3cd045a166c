"""Fused LoRA layers against PEFT's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alpaca_ray.train import lora


def adapted(*, dropout: float = 0.0, kind: torch.dtype = torch.float32, **options: Any) -> Any:
    """A layer with a bias and one without, with adapters whose B is not zero."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 8, bias=False)).to(kind)
    config = LoraConfig(r=4, lora_alpha=10, lora_dropout=dropout, target_modules=["0", "1"], **options)
    model = inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def results(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [y, *torch.autograd.grad((y.float() * weights).sum(), [x, *trained])]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_output_and_gradients_equal_pefts(kind: torch.dtype) -> None:
    model = adapted(kind=kind)
    x = torch.randn(2, 5, 12).to(kind)
    allowed = 1e-5 if kind == torch.float32 else 3e-2
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        theirs = results(model, x)
        assert lora.fuse(model) == 2
        ours = results(model, x)
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == right.dtype
        scale = right.abs().max()
        torch.testing.assert_close(mine / scale, right / scale, atol=allowed, rtol=allowed)


def test_dropout_drops_its_share_and_scales_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = lora.keep_mask(torch.empty(400, 1001), round(0.3 * 65536))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert abs(mask.mean().item() - 0.7) < 0.005
    assert (mask.mean(0) - 0.7).abs().max() < 0.2  # no column is favoured

    model = adapted(dropout=0.3)
    lora.fuse(model)
    layer = model[0]
    x = torch.randn(5, 12)
    fixed = lora.keep_mask(x, round(0.3 * 65536))
    monkeypatch.setattr(lora, "keep_mask", lambda *_: fixed)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer(x) + 2.5 * (x * fixed / 0.7) @ a.T @ b.T
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    y = x.clone().requires_grad_()
    mine = torch.autograd.grad(layer(y).sin().sum(), [y, a, b])
    whole = layer.base_layer(y) + 2.5 * (y * fixed / (1 - round(0.3 * 65536) / 65536)) @ a.T @ b.T
    for found, right in zip(mine, torch.autograd.grad(whole.sin().sum(), [y, a, b]), strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


def test_dropout_is_off_in_evaluation_and_repeats_with_the_seed() -> None:
    model = adapted(dropout=0.5)
    lora.fuse(model)
    x = torch.randn(3, 12)
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(model(x))
    torch.testing.assert_close(*runs, atol=0, rtol=0)
    assert not torch.equal(model(x), runs[0])
    model.eval()
    torch.testing.assert_close(model(x), model(x), atol=0, rtol=0)


def test_what_is_no_plain_adapter_keeps_pefts_own() -> None:
    assert lora.fuse(adapted(use_dora=True)) == 0
    assert lora.fuse(adapted(lora_bias=True)) == 0


def test_merging_and_switching_the_adapter_off_still_work() -> None:
    model = adapted()
    x = torch.randn(3, 12)
    plain = model[0](x)
    lora.fuse(model)
    model[0].enable_adapters(False)
    torch.testing.assert_close(model[0](x), model[0].base_layer(x))
    model[0].enable_adapters(True)
    model[0].merge()
    torch.testing.assert_close(model[0](x), plain, atol=1e-5, rtol=1e-5)
