"""The baselines against plain formulas."""

import pytest
import torch
import torch.nn.functional as F

import mumoe
from mumoe.errors import UserError


def make(k: int = 2, **options) -> mumoe.SparseMoE:
    moe = mumoe.SparseMoE(7, 6, 5, k, dtype=torch.float64, **options)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter)
    return moe


def by_loops(moe: mumoe.SparseMoE, x: torch.Tensor, without: tuple[int, ...] = ()) -> torch.Tensor:
    y = torch.zeros(len(x), 6, dtype=torch.float64)
    for i, row in enumerate(x):
        scores = moe.gate_weight @ row
        best = scores.argsort(descending=True)[: moe.k]
        for n, share in zip(best, scores[best].softmax(-1), strict=True):
            if int(n) not in without:
                bias = 0 if moe.bias is None else moe.bias[n]
                y[i] += share * (moe.weight[n] @ row + bias)
    return y


def test_sparse_moe_is_its_formula():
    for k in (1, 2, 5):
        for bias in (True, False):
            moe = make(k, bias=bias).eval()
            x = torch.randn(3, 4, 7, dtype=torch.float64)
            torch.testing.assert_close(moe(x).reshape(12, 6), by_loops(moe, x.reshape(12, 7)))
            a = moe.coefficients(x)[0]
            assert ((a > 0).sum(-1) == k).all()
            with moe.ablate([1, 3]):
                torch.testing.assert_close(moe(x).reshape(12, 6), by_loops(moe, x.reshape(12, 7), (1, 3)))


def test_sparse_moe_in_training_is_noisy_and_balances():
    moe = make()
    x = torch.randn(64, 7, dtype=torch.float64)
    y, loss = moe(x, return_loss=True)
    assert (moe(x) - y).abs().max() > 1e-6
    loss.backward()
    for name in ("gate_weight", "noise_weight"):
        grad = getattr(moe, name).grad
        assert grad.isfinite().all()
        assert grad.abs().max() > 0


def test_load_balancing_loss_by_hand():
    moe = make(1, noisy=False).eval()
    with torch.no_grad():
        moe.gate_weight.zero_()
        moe.gate_weight[:5, :5] = torch.eye(5)
    balanced = torch.eye(7, dtype=torch.float64)[:5]
    collapsed = torch.eye(7, dtype=torch.float64)[:1].expand(5, 7)
    assert float(moe(balanced, return_loss=True)[1].detach()) == 0
    # one expert has all 5 rows: importance 5 0 0 0 0, mean 1, variance 4; load the same without noise
    assert abs(float(moe(collapsed, return_loss=True)[1].detach()) - 8) < 1e-6


def test_sparse_moe_bfloat16_and_empty():
    moe = mumoe.SparseMoE(7, 6, 5).bfloat16().eval()
    assert moe(torch.randn(4, 7).bfloat16()).dtype == torch.bfloat16
    assert moe(torch.randn(0, 7).bfloat16()).shape == (0, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, loss = mumoe.SparseMoE(7, 6, 5)(torch.randn(4, 7), return_loss=True)
    assert y.isfinite().all()
    assert loss.dtype == torch.float32


def test_sparse_moe_gradients_reach_chosen_experts():
    moe = make(5).eval()
    moe(torch.randn(16, 7, dtype=torch.float64)).square().sum().backward()
    for name in ("weight", "bias", "gate_weight"):
        assert getattr(moe, name).grad.abs().amin() > 0, name


def test_high_rank_linear_is_a_product():
    high = mumoe.HighRankLinear(7, 6, 4)
    x = torch.randn(3, 2, 7)
    torch.testing.assert_close(high(x), F.linear(x, high.up.weight @ high.down.weight, high.up.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_moe_routes_alike_under_autocast(dtype):
    """Coefficients are those that the forward mixes with, in float32, regardless of autocast and the weights' type."""
    moe = mumoe.SparseMoE(16, 6, 9, 2).to(dtype).eval()
    torch.nn.init.normal_(moe.gate_weight)
    x = torch.randn(400, 16).to(dtype)
    (plain,), y = moe.coefficients(x), moe(x)
    with torch.autocast("cpu", torch.bfloat16):
        (a,), rough = moe.coefficients(x), moe(x)
    assert a.dtype == torch.float32
    torch.testing.assert_close(a, plain, rtol=0, atol=0)
    each = torch.einsum("bi,noi->bno", x.float(), moe.weight.float()) + moe.bias.float()
    expected = torch.einsum("bn,bno->bo", a, each)
    assert (y.float() - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 1e-2)
    assert (rough.float() - expected).norm() / expected.norm() < 1e-2
    assert rough.dtype == torch.bfloat16


def test_sparse_moe_coefficients_in_float64():
    moe = make().eval()
    assert moe.coefficients(torch.randn(3, 7, dtype=torch.float64))[0].dtype == torch.float64


def test_baselines_under_autocast_answer_as_linear_layers_do():
    for layer in (
        mumoe.SparseMoE(7, 6, 5),
        mumoe.HighRankLinear(7, 6, 4),
        mumoe.MuMoE(7, 6, 5, "cp", 4),
        torch.nn.Linear(7, 6),
    ):
        for x in (torch.randn(4, 7, requires_grad=True), torch.randn(4, 7, requires_grad=True, dtype=torch.bfloat16)):
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x)
                assert y.dtype == torch.bfloat16, type(layer)
                y.float().square().sum().backward()
            assert x.grad.isfinite().all()
            assert all(
                parameter.grad.dtype == torch.float32 for parameter in layer.parameters() if parameter.grad is not None
            )


@pytest.mark.parametrize("layer", [mumoe.SparseMoE(7, 6, 5), mumoe.HighRankLinear(7, 6, 4)])
def test_wrong_inputs_of_the_baselines(layer):
    who = type(layer).__name__
    with pytest.raises(UserError, match=rf"{who}: expected x.shape\[-1\] == in_features == 7, got 9"):
        layer(torch.randn(4, 9))
    with pytest.raises(
        UserError, match=f"{who}: expected x.dtype == torch.float32 as the weights have, got torch.bfloat16"
    ):
        layer(torch.randn(4, 7).bfloat16())
    with pytest.raises(UserError, match=rf"{who}: expected out_features as an int >= 1, got 0"):
        type(layer)(7, 0, 3)
