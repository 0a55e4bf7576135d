"""The layer against the definition, on weights taken entry by entry from the paper's formulas."""

import copy

import pytest
import tensorly
import torch
import torch.nn.functional as F

import mumoe
from mumoe.ablation import ablations
from mumoe.errors import UserError
from tests_support import KINDS, LEVELS, mix, randomize, rank_of, weight_by_formula

tensorly.set_backend("pytorch")

every_kind = pytest.mark.parametrize("kind", KINDS)
every_depth = pytest.mark.parametrize("depth", [1, 2, 3, 4])


def make(kind: str, depth: int, *, bias: bool = True, dtype=torch.float64, **options) -> mumoe.MuMoE:
    layer = mumoe.MuMoE(7, 6, LEVELS[depth], kind, rank_of(kind), bias=bias, dtype=dtype, **options)
    randomize(layer)
    layer(torch.randn(50, 7, dtype=dtype))  # running statistics of the gate
    return layer.eval()


@every_kind
@every_depth
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 3, 2)])
def test_forward_is_the_definition(kind, depth, bias, leading):
    layer = make(kind, depth, bias=bias)
    x = torch.randn(*leading, 7, dtype=torch.float64)
    y, a = layer(x, return_coefficients=True)
    rows = [level.reshape(-1, level.shape[-1]) for level in a]
    expected = mix(weight_by_formula(layer), x.reshape(-1, 7), rows).reshape(*leading, 6)
    assert y.shape == (*leading, 6)
    assert [level.shape for level in a] == [(*leading, size) for size in LEVELS[depth]]
    assert (y - expected).abs().max() < 1e-10
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
    for one, other in zip(layer.coefficients(x), a, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@every_kind
@every_depth
@pytest.mark.parametrize("hot", [True, False])
def test_contract_with_given_coefficients(kind, depth, hot):
    layer = make(kind, depth)
    x = torch.randn(6, 7, dtype=torch.float64)
    a = [torch.randn(6, size, dtype=torch.float64) for size in LEVELS[depth]]
    if hot:
        a = [F.one_hot(level.argmax(-1), level.shape[-1]).double() for level in a]
    assert (layer.contract(x, a) - mix(weight_by_formula(layer), x, a)).abs().max() < 1e-10
    if hot:
        index = tuple(int(level[0].argmax()) for level in a)
        one = F.linear(x[:1], layer.expert_weight(index), layer.expert_bias(index))
        torch.testing.assert_close(layer.contract(x, a)[:1], one)


@every_kind
def test_permuting_the_coefficients_changes_the_output(kind):
    layer = make(kind, 1)
    x = torch.randn(6, 7, dtype=torch.float64)
    a = layer.coefficients(x)
    assert (layer.contract(x, [a[0].flip(-1)]) - layer(x)).abs().max() > 1e-3


@every_kind
@every_depth
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (64,), (8, 8), (4, 4, 4)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(kind, depth, bias, leading, dtype, tolerance):
    layer = make(kind, depth, bias=bias, dtype=torch.float32)
    x = torch.randn(*leading, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, a = layer(x, return_coefficients=True)
    rows = [level.reshape(-1, level.shape[-1]) for level in a]
    expected = mix(weight_by_formula(layer), x.reshape(-1, 7), rows).reshape(*leading, 6)
    assert (y.double() - expected).norm() / expected.norm() < tolerance
    assert y.dtype == dtype
    for level in a:
        assert level.dtype == torch.float32
        assert (level.sum(-1) - 1).abs().max() < 1e-5


@every_kind
def test_bfloat16_weights(kind):
    layer = make(kind, 2, dtype=torch.float32)
    x = torch.randn(64, 7)
    rounded = copy.deepcopy(layer).bfloat16()
    y, a = rounded(x.bfloat16(), return_coefficients=True)
    expected = mix(weight_by_formula(rounded), x.bfloat16(), list(a))
    assert y.dtype == torch.bfloat16
    assert (y.double() - expected).norm() / expected.norm() < 2e-2
    assert all((level.sum(-1) - 1).abs().max() < 1e-5 for level in a)
    assert rounded.gate.norms[0].running_mean.dtype == torch.float32
    torch.testing.assert_close(rounded.gate.norms[0].running_mean, layer.gate.norms[0].running_mean)


@every_kind
@every_depth
@pytest.mark.parametrize("bias", [True, False])
def test_dense_and_single_experts(kind, depth, bias):
    layer = make(kind, depth, bias=bias)
    expected = weight_by_formula(layer)
    assert layer.to_dense().shape == (6, 7 + bias, *LEVELS[depth])
    assert (layer.to_dense() - expected).abs().max() < 1e-10
    index = tuple(size - 1 for size in LEVELS[depth])
    expert = expected[(slice(None), slice(None), *index)]
    asked = index[0] if depth == 1 else index
    assert (layer.expert_weight(asked) - expert[:, :7]).abs().max() < 1e-10
    if bias:
        assert (layer.expert_bias(asked) - expert[:, 7]).abs().max() < 1e-10
    else:
        assert layer.expert_bias(asked) is None


@every_depth
def test_tensorly_reconstructs_the_same_tensor(depth):
    cp = make("cp", depth).factorization
    ours = cp.to_dense()
    ones = torch.ones(3, dtype=torch.float64)
    assert (tensorly.cp_to_tensor((ones, cp.factors)) - ours).abs().max() < 1e-10
    tucker = make("tucker", depth).factorization
    assert (tensorly.tucker_to_tensor((tucker.core, tucker.factors)) - tucker.to_dense()).abs().max() < 1e-10
    train = make("tt", depth).factorization
    assert (tensorly.tt_to_tensor(train.cores) - train.to_dense()).abs().max() < 1e-10
    ring = make("tr", depth).factorization
    assert (tensorly.tr_to_tensor(ring.cores) - ring.to_dense()).abs().max() < 1e-10


@every_kind
@every_depth
def test_ablation_is_zeroing_slices(kind, depth):
    layer = make(kind, depth)
    x = torch.randn(9, 7, dtype=torch.float64)
    y, a = layer(x, return_coefficients=True)
    dense = weight_by_formula(layer)
    zero = tuple(0 for _ in LEVELS[depth])
    some = [zero, (0, *[1] * (depth - 1)), (2, *zero[1:])]
    for index in some:
        dense[(slice(None), slice(None), *index)] = 0
    with layer.ablate([index[0] for index in some] if depth == 1 else some) as same:
        ablated, unchanged = layer(x, return_coefficients=True)
        assert same is layer
    assert (ablated - mix(dense, x, list(a))).abs().max() < 1e-10
    for one, other in zip(a, unchanged, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("depth", [2, 3])
def test_ablation_by_level_and_nested(kind, depth):
    layer = make(kind, depth)
    x = torch.randn(9, 7, dtype=torch.float64)
    y, a = layer(x, return_coefficients=True)
    dense = weight_by_formula(layer)
    dense[:, :, 3] = 0
    by_level = dense.clone()
    dense[(slice(None), slice(None), *[1] * depth)] = 0
    dense[:, :, :, 1] = 0
    with layer.ablate(level=0, experts=[3]):
        assert (layer(x) - mix(by_level, x, list(a))).abs().max() < 1e-10
        with layer.ablate([(1,) * depth]), layer.ablate(1, level=1):
            assert (layer(x) - mix(dense, x, list(a))).abs().max() < 1e-10
        assert (layer(x) - mix(by_level, x, list(a))).abs().max() < 1e-10
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


def test_ablation_is_undone_after_an_exception():
    layer = make("cp", 1)
    x = torch.randn(4, 7, dtype=torch.float64)
    y = layer(x)
    with pytest.raises(KeyError), layer.ablate([0, 1, 2, 3, 4]):
        assert layer(x).abs().max() == 0
        raise KeyError
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)


@every_kind
@pytest.mark.parametrize("init", ["paper", "uniform"])
def test_at_init_later_levels_are_copies(kind, init):
    layer = mumoe.MuMoE(7, 6, (4, 3, 2), kind, rank_of(kind), init=init)
    dense = layer.to_dense()
    torch.testing.assert_close(dense[:, :, :, :1, :1].expand_as(dense), dense)
    first = dense[:, :, :, 0, 0]
    assert (first[:, :, 0] - first[:, :, 1]).abs().max() > 1e-3, "the first level has noise"


def test_paper_init_has_unit_columns():
    for kind in ("cp", "tucker"):
        part = mumoe.MuMoE(7, 6, 4, kind, 3, init="paper").factorization
        for factor in part.factors[:2]:
            torch.testing.assert_close(factor.norm(dim=0), torch.ones(3))
    ring = mumoe.MuMoE(7, 6, 4, "tr", 3, init="paper").factorization
    torch.testing.assert_close(ring.cores[0].norm(dim=1), torch.ones(4, 3))
    silent = mumoe.MuMoE(7, 6, 4, "tr", 3, init="paper", sigma=[0.0]).factorization
    torch.testing.assert_close(silent.cores[2], torch.eye(4)[:, None, :].expand(4, 4, 4))


def test_uniform_init_stays_in_its_bounds():
    part = mumoe.MuMoE(99, 50, 4, "cp", 16, init="uniform").factorization
    assert 0.09 < part.in_factor.abs().max() <= 0.1  # 1 / sqrt(99 + 1)
    assert 0.24 < part.out_factor.abs().max() <= 0.25


@every_kind
@every_depth
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_exact_whatever_the_coefficients(kind, depth, bias):
    linear = torch.nn.Linear(12, 9, bias=bias)
    layer = mumoe.MuMoE.from_linear(linear, LEVELS[depth], kind).eval()
    x = torch.randn(64, 12)
    a = [torch.randn(64, size).softmax(-1) for size in LEVELS[depth]]
    for y in (layer(x), layer.contract(x, a)):
        assert (y - linear(x)).norm() / linear(x).norm() < 1e-5
    assert layer.factorization.bias == bias


def test_from_linear_with_odd_bonds_is_exact():
    linear = torch.nn.Linear(12, 9)
    rank = {"out-in": 9, "in-expert": 2, "expert-expert": 5, "expert-out": 3}
    layer = mumoe.MuMoE.from_linear(linear, (4, 3), "tr", rank).eval()
    x = torch.randn(8, 12)
    torch.testing.assert_close(layer(x), linear(x))


def test_from_linear_of_low_rank_is_the_best_approximation():
    linear = torch.nn.Linear(12, 9)
    matrix = torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach()
    singular = torch.linalg.svdvals(matrix)
    best = float(singular[4:].norm() / singular.norm())
    for kind in ("cp", "tucker"):
        with pytest.warns(UserWarning, match=f"relative error {best:.3g}"):
            layer = mumoe.MuMoE.from_linear(linear, 5, kind, 4)
        error = (layer.to_dense()[:, :, 2] - matrix).norm() / matrix.norm()
        assert float(error.detach()) == pytest.approx(best, rel=1e-4)


def test_from_linear_with_noise_differs_between_experts_of_the_first_level_only():
    layer = mumoe.MuMoE.from_linear(torch.nn.Linear(12, 9), (5, 3), sigma=0.1)
    dense = layer.to_dense()
    assert (dense[:, :, 0] - dense[:, :, 1]).abs().max() > 1e-3
    torch.testing.assert_close(dense[..., 0], dense[..., 1])


@every_kind
@every_depth
def test_every_parameter_gets_a_finite_gradient(kind, depth):
    sigma = (1.0,) * depth  # where the experts of a level are copies, their gate has no gradient
    layer = mumoe.MuMoE(7, 6, LEVELS[depth], kind, rank_of(kind), sigma=sigma)
    layer(torch.randn(16, 7)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@every_kind
def test_block_is_two_layers_under_one_gate(kind):
    block = mumoe.MuMoEBlock(7, 10, 6, num_experts=(4, 3), factorization=kind, rank=rank_of(kind), dtype=torch.float64)
    randomize(block)
    block(torch.randn(50, 7, dtype=torch.float64))
    block.eval()
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    y, a = block(x, return_coefficients=True)
    rows = [level.reshape(10, -1) for level in a]
    dense = [_dense_of(block.fc1), _dense_of(block.fc2)]
    expected = mix(dense[1], F.gelu(mix(dense[0], x.reshape(10, 7), rows)), rows)
    assert (y.reshape(10, 6) - expected).abs().max() < 1e-10
    with block.ablate(level=0, experts=[2]):
        for weight in dense:
            weight[:, :, 2] = 0
        expected = mix(dense[1], F.gelu(mix(dense[0], x.reshape(10, 7), rows)), rows)
        assert (block(x).reshape(10, 6) - expected).abs().max() < 1e-10


def _dense_of(part):
    return part.to_dense().detach().clone()


def test_block_ranks_of_its_own():
    block = mumoe.MuMoEBlock(7, 10, 6, num_experts=4, rank=[3, 5])
    assert (block.fc1.ranks, block.fc2.ranks) == ({"rank": 3}, {"rank": 5})


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ({"num_experts": 128, "factorization": "cp", "rank": 12}, "CPMuMoE-r12-e128"),
        ({"num_experts": (128, 4), "factorization": "tr", "rank": 12}, "TRMuMoE-r12-e128x4"),
        ({"num_experts": (128, 4), "factorization": "tt", "rank": 12}, "TTMuMoE-r12-e128x4"),
        ({"num_experts": 8, "factorization": "dense"}, "DenseMuMoE-e8"),
        ({"num_experts": (8, 4), "factorization": "tucker", "rank": 5}, "TuckerMuMoE-r5-e8x4"),
        (
            {"num_experts": (8, 4), "factorization": "tucker", "rank": {"out": 5, "in": 6, "experts": (7, 2)}},
            "TuckerMuMoE-r5x6x7x2-e8x4",
        ),
        (
            {"num_experts": (8, 4, 2), "factorization": "tr", "rank": {"out-in": 9, "expert-expert": (2, 3)}},
            "TRMuMoE-r9x4x2x3x4-e8x4x2",
        ),
    ],
)
def test_spec_round_trip(options, spec):
    layer = mumoe.MuMoE(16, 10, **options)
    assert layer.spec == spec
    again = mumoe.MuMoE.from_spec(spec, 16, 10)
    assert again.spec == spec
    assert again.factorization.ranks == layer.factorization.ranks


def test_nan_stays_in_its_row():
    for kind in KINDS:
        for gate in ("entmax15", "entmax", "sparsemax", "softmax", "topk", "softrank"):
            layer = mumoe.MuMoE(7, 6, 300, kind, rank_of(kind), gate=gate).eval()
            x = torch.randn(5, 7)
            good = layer(x)
            x[2, 3] = float("nan")
            y = layer(x)
            assert y[2].isnan().all(), (kind, gate)
            torch.testing.assert_close(y[[0, 1, 3, 4]], good[[0, 1, 3, 4]])


def test_reset_parameters_draws_anew():
    layer = mumoe.MuMoE(7, 6, 4, "cp", 3)
    before = layer.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    layer.reset_parameters()
    assert not torch.equal(layer.factorization.in_factor, before["factorization.in_factor"])
    assert not torch.equal(layer.gate.weights[0], before["gate.routers.0.weight"])


def test_ablating_what_is_not_there():
    layer = mumoe.MuMoE(7, 6, (4, 3), "cp", 3)
    with (
        pytest.raises(UserError, match="expected an expert in 0..3, got 4. There are 4 experts"),
        layer.ablate([(4, 0)]),
    ):
        pass
    with pytest.raises(UserError, match="one index for each of 2 levels, such as \\(0, 0\\), got 3"), layer.ablate([3]):
        pass
    with pytest.raises(UserError, match="expected level in 0..1, got 2"), layer.ablate([3], level=2):
        pass
    assert ablations(layer) == ()
