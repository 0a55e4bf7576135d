"""The baselines against plain formulas."""

import torch
import torch.nn.functional as F

import mumoe


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
