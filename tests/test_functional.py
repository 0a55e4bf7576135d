"""Gate activations against other people's implementations, by hand, and through first and second derivatives."""

import itertools

import entmax as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from mumoe import MuMoE
from mumoe import functional as MF
from mumoe.errors import UserError
from mumoe.gating import GATES as REGISTERED
from tests_support import GATES

OURS = {"entmax15": MF.entmax15, "sparsemax": MF.sparsemax}
THEIRS = {"entmax15": oracle.entmax15, "sparsemax": oracle.sparsemax}


def rows() -> torch.Tensor:
    """10,000 rows: random, of small and large scale, with ties, with entries of -inf, constant."""
    x = torch.randn(10_000, 40, dtype=torch.float64)
    scale = 10.0 ** torch.randint(-3, 5, (10_000, 1)).double()
    x = x * scale
    x[2000:4000] = x[2000:4000].round()
    x[4000:5000] = torch.randint(0, 3, (1000, 40)).double()
    x[5000:6000][torch.rand(1000, 40) < 0.5] = -torch.inf
    x[5000:6000, 7] = 0.0
    x[6000:6100] = 3.0
    x[6100:6200, :] = 1e4
    return x


@pytest.mark.parametrize("name", list(OURS))
def test_values_and_gradients_equal_entmax(name):
    x = rows()
    weight = torch.randn_like(x)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    p, q = OURS[name](ours), THEIRS[name](theirs, dim=-1)
    assert (p - q).abs().max() < 1e-10
    (p * weight).sum().backward()
    (q * weight).sum().backward()
    assert (ours.grad - theirs.grad).abs().max() < 1e-8
    single = OURS[name](x.float())
    assert single.dtype == torch.float32
    assert (single.sum(-1) - 1).abs().max() < 1e-5
    moderate = x.abs().nan_to_num(posinf=0).amax(-1) < 100
    assert (single.double() - OURS[name](x.float().double()))[moderate].abs().max() < 1e-5


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 300, 5000])
@pytest.mark.parametrize("name", list(OURS))
def test_supports_larger_than_the_first_look(name, size):
    x = torch.randn(20, size, dtype=torch.float64) * 10.0 ** -torch.arange(20.0)[:, None].double()
    p = OURS[name](x)
    assert (p - THEIRS[name](x, dim=-1)).abs().max() < 1e-12
    assert (p[-1] > 0).all(), "a nearly constant row has full support"
    assert (OURS[name](x.float()).sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("alpha", [1.05, 1.2, 1.5, 1.7, 2.0])
def test_any_alpha_equals_bisection(alpha):
    x = torch.randn(300, 40, dtype=torch.float64) * 3
    x[:20] = x[:20].round()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    p = MF.entmax(ours, torch.tensor(alpha, dtype=torch.float64))
    q = oracle.entmax_bisect(theirs, alpha=alpha, dim=-1, n_iter=200)
    assert (p - q).abs().max() < 1e-10
    weight = torch.randn_like(x)
    (p * weight).sum().backward()
    (q * weight).sum().backward()
    assert (ours.grad - theirs.grad).abs().max() < 1e-6
    assert (MF.entmax(x.float(), alpha).sum(-1) - 1).abs().max() < 1e-5
    assert (MF.entmax(x, alpha) - p).abs().max() < 1e-12


def test_gradient_of_alpha():
    x = torch.randn(30, 6, dtype=torch.float64)
    alpha = torch.tensor(1.4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    (MF.entmax(x, alpha) * weight).sum().backward()
    step = 1e-6
    difference = MF.entmax(x, 1.4 + step) - MF.entmax(x, 1.4 - step)
    assert float(alpha.grad) == pytest.approx(float((difference * weight).sum() / (2 * step)), rel=1e-5)
    assert torch.autograd.gradcheck(MF.entmax, (x[:4].requires_grad_(), alpha))
    assert torch.autograd.gradgradcheck(MF.entmax, (x[:4].requires_grad_(), alpha), atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.1, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match=r"entmax: expected 1 < alpha <= 2, got .*Use softmax for alpha = 1"):
        MF.entmax(torch.randn(2, 3), alpha)


def test_by_hand():
    p = MF.entmax15(torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    tau = (0.5 - np.sqrt(2 - 0.25)) / 2  # row 3: (0.5 - tau)^2 + tau^2 = 1, halves of (1, 0)
    expected = torch.tensor([[0.5, 0.5], [1.0, 0.0], [(0.5 - tau) ** 2, tau**2]], dtype=torch.float64)
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(MF.sparsemax(torch.tensor([[0.5, 0.0, -2.0]])), torch.tensor([[0.75, 0.25, 0.0]]))
    torch.testing.assert_close(
        MF.topk_softmax(torch.tensor([[0.0, 3.0, 3.0, -1.0]]), 2), torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    )


@pytest.mark.parametrize("regularization", [0.01, 0.3, 1.0, 20.0])
def test_softrank_equals_isotonic_regression(regularization):
    for size, scale in itertools.product([1, 2, 7, 30], [0.1, 1.0, 30.0]):
        x = torch.randn(20, size, dtype=torch.float64) * scale
        expected = np.stack([soft_ranks(row.numpy() / regularization) for row in x])
        p = MF.softrank(x, regularization).numpy()
        np.testing.assert_allclose(p * (size * (size + 1) / 2), expected, atol=1e-9)


def soft_ranks(z: np.ndarray) -> np.ndarray:
    """Projection onto the permutahedron of (1 .. n), by scikit-learn's isotonic regression."""
    order = np.argsort(-z)
    ranks = np.arange(len(z), 0, -1.0)
    fit = IsotonicRegression(increasing=False).fit_transform(np.arange(len(z)), z[order] - ranks)
    result = np.empty_like(z)
    result[order] = z[order] - fit
    return result


def test_softrank_of_little_regularization_is_the_rank():
    p = MF.softrank(torch.tensor([[0.3, -1.0, 2.0, 0.9]]), 1e-3)
    torch.testing.assert_close(p, torch.tensor([[2.0, 1.0, 4.0, 3.0]]) / 10)


@pytest.mark.parametrize("gate", [gate for gate in REGISTERED if not gate.endswith("-frozen")])
def test_first_and_second_derivatives(gate):
    module = REGISTERED[gate](**GATES.get(gate, {})).double()
    x = (torch.randn(5, 7, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


NORMALIZED = [gate for gate in REGISTERED if not gate.endswith("-frozen") and gate != "relu_topk"]


@pytest.mark.parametrize("gate", NORMALIZED)
def test_float32_rows_sum_to_one_and_ignore_a_shift(gate):
    module = REGISTERED[gate](**GATES.get(gate, {}))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        p = module((torch.randn(50, 300) * 3).to(dtype))
        assert p.dtype == torch.float32
        assert (p.sum(-1) - 1).abs().max() < 1e-5
        assert (p >= 0).all()
    x = torch.randn(50, 30, dtype=torch.float64)
    torch.testing.assert_close(module(x + 100.0), module(x))


@pytest.mark.parametrize("name", list(OURS))
def test_infinities_of_both_signs(name):
    x = torch.randn(4, 100)
    x[0, 3], x[1, :], x[2, 5] = torch.inf, -torch.inf, torch.nan
    p = OURS[name](x)
    assert p[:3].isnan().any(-1).all()
    assert p[3].isfinite().all()


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=80), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_optimality_conditions(values):
    """p_i > 0 means x_i / 2 - sqrt(p_i) is the same tau; p_i = 0 means x_i / 2 is not above it."""
    for row in values:
        x = torch.tensor([row], dtype=torch.float64)
        p = MF.entmax15(x)
        assert float(p.sum()) == pytest.approx(1, abs=1e-9)
        tau = (x / 2 - p.sqrt())[p > 0]
        assert float(tau.max() - tau.min()) < 1e-6
        assert (x[p == 0] / 2 <= tau.max() + 1e-6).all()


def test_learnable_alpha_is_trained():
    gate = REGISTERED["entmax"](alpha=1.5, learnable=True)
    assert float(gate.alpha.detach()) == pytest.approx(1.5)
    assert "alpha=1.5, learnable=True" in repr(gate)
    gate(torch.randn(4, 9)).square().sum().backward()
    assert gate.logit.grad.abs() > 0


def test_every_rotation_of_a_ring_is_the_same_tensor():
    """Equation 4 contracts the cores in the order O, I, N; docs/paper.md says that the order of the trace is free."""
    out, inner, experts = (torch.randn(*size, dtype=torch.float64) for size in ((3, 2, 4), (5, 4, 6), (7, 6, 2)))
    each = [(o, i, n) for n in experts for i in inner for o in out]
    rings = [[o @ i @ n for o, i, n in each], [i @ n @ o for o, i, n in each], [n @ o @ i for o, i, n in each]]
    weights = [torch.stack([ring.trace() for ring in rotation]).view(7, 5, 3) for rotation in rings]
    assert torch.allclose(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[2])
    x, a = torch.randn(8, 5, dtype=torch.float64), torch.rand(8, 7, dtype=torch.float64)
    expected = torch.einsum("rn,nio,ri->ro", a, weights[1], x)
    assert torch.allclose(MF.ring_contract(x, [a], [out, inner, experts]), expected)


@pytest.mark.parametrize("rows", [1, 15, 16, 33, 64])
@pytest.mark.parametrize(("kind", "part"), [("tucker", "_through_core"), ("tr", "_close"), ("tt", "_close")])
def test_a_few_rows_at_a_time_are_all_rows(kind, part, rows, monkeypatch):
    monkeypatch.setattr(MF, "_HELD", 1)  # 16 rows at a time
    torch.manual_seed(0)
    layer = MuMoE(6, 5, (4, 3), kind, 3, dtype=torch.float64).eval()
    x = torch.randn(rows, 6, dtype=torch.float64)
    whole = layer(x)  # with gradients: all rows at once
    sizes = []
    real = getattr(MF, part)
    monkeypatch.setattr(MF, part, lambda *given: sizes.append(len(given[0])) or real(*given))
    with torch.no_grad():
        assert (layer(x) - whole).abs().max() < 1e-14
        assert torch.equal(layer(x), layer(x))
    assert max(sizes) <= 16
    assert sum(sizes) == 3 * rows


def test_relu_topk_by_hand():
    x = torch.tensor([[0.5, 3.0, -1.0, 2.0], [-1.0, -2.0, 0.0, 0.25], [torch.nan, 1.0, 2.0, 3.0], [torch.inf, 1, 2, 3]])
    p = MF.relu_topk(x, 2)
    torch.testing.assert_close(p[:2], torch.tensor([[0.0, 3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.25]]))
    assert p[2:].isnan().any(-1).all()


def test_without_normalization():
    x = torch.randn(20, 7, dtype=torch.float64)
    p = MF.topk_softmax(x, 3, normalize=False)
    assert ((p > 0).sum(-1) == 3).all()
    torch.testing.assert_close(p[p > 0], x.softmax(-1)[p > 0])
    torch.testing.assert_close(MF.softrank(x, 0.3, normalize=False), MF.softrank(x, 0.3) * 28)


FORWARD_MODE = [gate for gate in REGISTERED if not gate.endswith("-frozen")]


@pytest.mark.parametrize(("gate", "learnable"), [*((gate, False) for gate in FORWARD_MODE), ("entmax", True)])
def test_forward_mode_derivatives(gate, learnable):
    options = {"alpha": 1.4, "learnable": True} if learnable else GATES.get(gate, {})
    module = REGISTERED[gate](**options).double()
    x, direction = torch.randn(2, 3, 7, dtype=torch.float64).unbind()
    forward, backward = torch.func.jacfwd(module)(x), torch.func.jacrev(module)(x)
    torch.testing.assert_close(forward, backward)
    _, tangent = torch.func.jvp(module, (x,), (direction,))
    torch.testing.assert_close(tangent, torch.einsum("abcd,cd->ab", backward, direction))
    double = torch.func.hessian(lambda x: module(x).square().sum())(x)
    twice = torch.func.jacrev(torch.func.jacrev(lambda x: module(x).square().sum()))(x)
    torch.testing.assert_close(double, twice)
    if learnable:
        names, values = zip(*module.named_parameters(), strict=True)
        call = lambda *values: torch.func.functional_call(module, dict(zip(names, values, strict=True)), x)  # noqa: E731
        torch.testing.assert_close(torch.func.jacfwd(call)(*values), torch.func.jacrev(call)(*values))


@pytest.mark.parametrize("gate", FORWARD_MODE)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_forward_mode_derivatives_of_layers(gate, norm):
    torch.manual_seed(0)
    layer = MuMoE(6, 4, (5, 3), rank=3, gate=gate, norm=norm, gate_options=GATES.get(gate)).double().eval()
    layer.gate.route = "sparse"
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.func.jacfwd(layer)(x), torch.func.jacrev(layer)(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1])
