"""Routers, routes, inputs of their own and old checkpoints of gates."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

import mumoe
from mumoe.coefficients import Coefficients, SparseCoefficients
from mumoe.errors import UserError
from mumoe.gating import Entmax, Gate
from mumoe.layers import MuMoEGatedBlock, allow_non_finite


def dense(layer: nn.Module, x: torch.Tensor, a: list[torch.Tensor]) -> torch.Tensor:
    """sum_n a_n (W_n x + b_n) from the layer's single experts."""
    y = torch.zeros(len(x), layer.out_features, dtype=x.dtype)
    for n in range(layer.num_experts[0]):
        y = y + a[0][:, n : n + 1] * (x @ layer.expert_weight(n).T + layer.expert_bias(n))
    return y


def test_the_gate_may_read_another_tensor() -> None:
    layer = mumoe.MuMoE(6, 4, 5, rank=3, gate=Gate(9, (5,), "relu_topk", "none", options={"k": 2})).double()
    x, other = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 9, dtype=torch.float64)
    y, a = layer(x, return_coefficients=True, gate_input=other)
    a = [a[0].detach()]
    logits = other @ layer.gate.routers[0].weight.T + layer.gate.routers[0].bias
    assert torch.equal((a[0] > 0).sum(-1), (logits.topk(2).values > 0).sum(-1))
    assert float(a[0].sum(-1).std()) > 0.01, "not normalized"
    torch.testing.assert_close(y, dense(layer, x, a))
    same = layer(x.view(7, 1, 6), gate_input=other.view(7, 1, 9))
    torch.testing.assert_close(same.view(7, 4), y)
    assert not torch.allclose(layer(x, gate_input=other.flip(0)), y)


@pytest.mark.parametrize("kind", [mumoe.MuMoEBlock, MuMoEGatedBlock])
def test_the_gate_of_a_block_may_read_another_tensor(kind: type[mumoe.MuMoEBlock]) -> None:
    block = kind(6, 8, 4, num_experts=5, rank=3).eval()
    x, other = torch.randn(7, 6), torch.randn(7, 6)
    y, a = block(x, return_coefficients=True, gate_input=other)
    torch.testing.assert_close(a[0], block.coefficients(other)[0])
    assert not torch.allclose(y, block(x))


@pytest.mark.parametrize("given", [None, torch.zeros(7, 6), torch.zeros(3, 9)])
def test_a_wrong_gate_input_is_one_line(given: torch.Tensor | None) -> None:
    layer = mumoe.MuMoE(6, 4, 5, rank=3, gate=Gate(9, (5,)))
    with pytest.raises(UserError, match=r"^MuMoE: expected (the gate's input of width 9, got 6|gate_input of shape)"):
        layer(torch.zeros(7, 6), gate_input=given)


def test_a_gate_of_other_experts_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected a Gate of experts \(5,\).*got one of \(4,\)"):
        mumoe.MuMoE(6, 4, 5, rank=3, gate=Gate(6, (4,)))


def test_a_router_is_any_module() -> None:
    routers = [nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, size)) for size in (5, 3)]
    layer = mumoe.MuMoE(6, 4, (5, 3), rank=2, gate=Gate(6, (5, 3), router=routers, norm="none")).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    for level, router in enumerate(routers):
        torch.testing.assert_close(layer.coefficients(x)[level], mumoe.functional.entmax15(router(x)))
    layer(x).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in layer.gate.routers.parameters() if p.grad is not None)
    with pytest.raises(UserError, match="expected one router for each of 2 levels, got 1"):
        Gate(6, (5, 3), router=routers[0])


def test_the_default_router_is_a_linear_layer_without_bias() -> None:
    layer = mumoe.MuMoE(6, 4, (5, 3), rank=2)
    found = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    assert list(found) == ["gate.routers.0", "gate.routers.1"]
    assert all(module.bias is None for module in found.values())
    assert mumoe.MuMoE(6, 4, 5, rank=2, gate="relu_topk").gate.routers[0].bias is not None


def test_a_checkpoint_from_before_the_routers_loads() -> None:
    layer, other = mumoe.MuMoE(6, 4, (5, 3), rank=2), mumoe.MuMoE(6, 4, (5, 3), rank=2)
    old = {
        name.replace("gate.routers.0.weight", "gate.weights.0").replace(
            "gate.routers.1.weight", "gate.weights.1"
        ): value
        for name, value in layer.state_dict().items()
    }
    assert "gate.weights.1" in old
    other.load_state_dict(old)
    x = torch.randn(9, 6)
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_coefficients_are_given_as_they_are_held() -> None:
    layer = mumoe.MuMoE(6, 4, (600, 3), rank=2).eval()
    layer.gate.route = "sparse"
    x = torch.randn(50, 6)
    with torch.no_grad():
        y, a = layer(x, return_coefficients="sparse")
        _, tensors = layer(x, return_coefficients=True)
    assert [type(level).__mro__[1] is Coefficients for level in a] == [True, True]
    assert isinstance(a[0], SparseCoefficients)
    for level, matrix in zip(a, tensors, strict=True):
        torch.testing.assert_close(level.to_dense(), matrix)
        for (experts, values), row in zip(level.rows(), matrix, strict=True):
            torch.testing.assert_close(row[experts], values)
            assert float(row.sum()) == pytest.approx(float(values.sum()))
    torch.testing.assert_close(layer(x), y)


@pytest.mark.parametrize("route", ["dense", "sparse", "auto"])
def test_a_route_is_a_setting_of_the_gate(route: str) -> None:
    torch.manual_seed(1)
    gate = Gate(6, (600,), route=route)
    layer = mumoe.MuMoE(6, 4, 600, rank=2, gate=gate).eval()
    x = torch.randn(20, 6)
    a = layer(x, return_coefficients="sparse")[1][0]
    assert isinstance(a, SparseCoefficients) == (route == "sparse"), "auto: too few logits"
    assert float(a.to_dense().detach().sum(-1).mean()) == pytest.approx(1)
    with pytest.raises(UserError, match="Did you mean 'sparse'"):
        Gate(6, (600,), route="spars")


def test_levels_do_not_share_a_gate_module() -> None:
    learned = Entmax(1.4, learnable=True)
    layer = mumoe.MuMoE(6, 4, (5, 3), rank=2, gate=learned)
    first, second = layer.gate.activations
    assert first is not second
    assert first.logit is not second.logit
    names = {name for name, _ in layer.named_parameters()}
    assert {"gate.activations.0.logit", "gate.activations.1.logit"} <= names


def test_reset_parameters_resets_a_learned_alpha() -> None:
    layer = mumoe.MuMoE(6, 4, 5, rank=2, gate="entmax", gate_options={"alpha": 1.3, "learnable": True})
    with torch.no_grad():
        layer.gate.activations[0].logit.add_(1)
    assert layer.gate.activations[0].alpha.item() > 1.4
    layer.reset_parameters()
    assert layer.gate.activations[0].alpha.item() == pytest.approx(1.3)


def test_a_diverged_checkpoint_can_be_examined() -> None:
    layer = mumoe.MuMoE(6, 4, 5, rank=2)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    state["factorization.in_factor"][0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite values in 'factorization.in_factor'"):
        layer.load_state_dict(state)
    with allow_non_finite():
        layer.load_state_dict(state)
    assert int(layer.factorization.in_factor.isnan().sum()) == 1


def test_blocks_fit_where_timm_makes_its_mlps() -> None:
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    mlp = partial(mumoe.MuMoEBlock, num_experts=4)
    model = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3, mlp_layer=mlp
    )
    assert sum(isinstance(module, mumoe.MuMoEBlock) for module in model.modules()) == 2
    plain = VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3)
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, plain))
    assert 0.9 < ours / theirs <= 1.02, "as many parameters by default"
    images = torch.randn(2, 3, 32, 32)
    model(images).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images))
    assert timm.__version__
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images), model(images))
