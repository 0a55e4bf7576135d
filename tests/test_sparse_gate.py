"""The sparse gate: the same numbers as the dense one, and when it is taken."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

import mumoe
from mumoe import kernels, sparse_gate
from mumoe.coefficients import Coefficients, DenseCoefficients, SparseCoefficients
from mumoe.gating import Gate, Router
from tests_support import KINDS, rank_of

GATES = ("entmax15", "sparsemax", "topk", "relu_topk")
COMPUTES = ("compiled", "torch")


@pytest.fixture(params=COMPUTES)
def computes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernels, and in plain PyTorch."""
    monkeypatch.setenv("MUMOE_NATIVE", "1" if request.param == "compiled" else "0")
    assert (kernels.of(torch.ones(1)) is None) == (request.param == "torch")
    return str(request.param)


def with_route(layer: nn.Module, route: str) -> nn.Module:
    own = copy.deepcopy(layer)
    own.gate.route = route  # type: ignore[union-attr]
    return own


def results(layer: nn.Module, x: Tensor, route: str) -> list[Tensor]:
    """Output, gradients of the input and all parameters, buffers after the step."""
    own, x = with_route(layer, route), x.detach().clone().requires_grad_()
    y = own(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    grads = torch.autograd.grad((y * weights).sum(), [x, *own.parameters()])
    return [y.detach(), *grads, *own.buffers()]


def difference(a: list[Tensor], b: list[Tensor], floor: float) -> float:
    """Largest difference, relative to the largest entry of each tensor or of nothing smaller than `floor`."""
    return max(float((p - q).abs().max() / q.abs().max().clamp(min=floor)) for p, q in zip(a, b, strict=True))


def taken(layer: nn.Module, x: Tensor, route: str = "auto") -> list[type]:
    """What the layer's gate gives."""
    with torch.no_grad():
        return [type(a) for a in with_route(layer, route).gate(x)]  # type: ignore[operator]


def same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    floor = 0.01 * max(float(t.abs().max()) for t in expected)
    assert difference([t.double() for t in found], [t.double() for t in expected], floor) < tolerance


@pytest.mark.parametrize("factorization", KINDS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_both_routes_give_the_same_numbers(
    factorization: str, gate: str, norm: str, training: bool, dtype: torch.dtype, computes: str
) -> None:
    torch.manual_seed(0)
    if computes == "compiled" and dtype == torch.float64:
        assert kernels.of(torch.ones(1, dtype=dtype)) is None
    options = {"k": 5} if "topk" in gate else {}
    layer = mumoe.MuMoE(
        24, 10, (120, 3), factorization, rank_of(factorization, 6), gate=gate, norm=norm, gate_options=options,
        sigma=(1, 1), dtype=dtype,
    )  # fmt: skip
    layer.train(training)
    for router in layer.gate.routers:
        if router.bias is not None:
            nn.init.normal_(router.bias)  # type: ignore[arg-type]
    x = torch.randn(40, 24, dtype=dtype)
    assert taken(layer, x, "sparse") == [SparseCoefficients] * 2
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    same(results(layer, x, "sparse"), results(layer, x, "dense"), tolerance)


def plain_inputs() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(32, 9, 1500, rank=8), torch.randn(64, 32)


def large_mean() -> tuple[mumoe.MuMoE, Tensor]:
    layer, x = plain_inputs()
    return layer, x + 100


def duplicates() -> tuple[mumoe.MuMoE, Tensor]:
    layer, x = plain_inputs()
    with torch.no_grad():
        layer.gate.weights[0][750:] = layer.gate.weights[0][:750]
    return layer, x


def ties() -> tuple[mumoe.MuMoE, Tensor]:
    layer, x = plain_inputs()
    with torch.no_grad():
        layer.gate.weights[0].round_(decimals=0)
    return layer, x.round()


def wide_support() -> tuple[mumoe.MuMoE, Tensor]:
    layer = mumoe.MuMoE(32, 9, 3000, rank=8, norm="none")
    with torch.no_grad():
        layer.gate.weights[0].mul_(0.35)
    return layer, torch.randn(64, 32)


def uneven_support() -> tuple[mumoe.MuMoE, Tensor]:
    layer, x = wide_support()
    return layer, x * torch.logspace(-0.3, 1, 64)[:, None]


def one_expert() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(32, 9, (700, 1), rank=8), torch.randn(64, 32)


def small_level() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(32, 9, (700, 70), rank=8), torch.randn(64, 32)


def odd_sizes() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(32, 9, 1031, rank=8), torch.randn(3, 32)


def many_rows() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(8, 9, 600, rank=8), torch.randn(900, 8)  # the Gram matrix pays


CASES: list[Callable[[], tuple[mumoe.MuMoE, Tensor]]] = [
    plain_inputs, large_mean, duplicates, ties, wide_support, uneven_support, one_expert, small_level, odd_sizes,
    many_rows
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_single_precision_on_hard_inputs(case: Callable[[], tuple[mumoe.MuMoE, Tensor]], computes: str) -> None:
    torch.manual_seed(0)
    layer, x = case()
    exact = results(copy.deepcopy(layer).double(), x.double(), "dense")
    found = [tensor.double() for tensor in results(layer, x, "sparse")]
    plain = [tensor.double() for tensor in results(layer, x, "dense")]
    largest = max(float(tensor.abs().max()) for tensor in exact[:2])
    error, other = difference(found, exact, largest), difference(plain, exact, largest)
    assert error < max(2e-6, 2 * other), f"dense {other:.1e}"


def test_repeats_are_equal_to_the_bit(computes: str) -> None:
    torch.manual_seed(0)
    layer, x = plain_inputs()
    first = results(layer, x, "sparse")
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, results(layer, x, "sparse"), strict=True))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives(gate: str, norm: str, training: bool) -> None:
    torch.manual_seed(1)
    layer = mumoe.MuMoE(3, 2, (9, 2), "cp", 2, norm=norm, gate=gate).double().train(training)
    layer.gate.route = "sparse"
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())
    assert taken(layer, x, "sparse") == [SparseCoefficients] * 2

    def run(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)) | state, (x,))
        return y

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)


ROWS = st.tuples(st.integers(1, 3), st.integers(1, 300))
NUMBERS = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 1.0, -1.0, -2.0, 2.0, 1e-7, -float("inf")])


@settings(max_examples=100, deadline=None)
@given(st.data(), ROWS, st.sampled_from(GATES), st.sampled_from(COMPUTES))
def test_the_bound_never_loses_a_member_of_the_support(
    data: st.DataObject, shape: tuple[int, int], gate: str, computes: str
) -> None:
    logits = torch.from_numpy(data.draw(arrays.arrays("float32", shape, elements=NUMBERS, fill=NUMBERS)))
    dense = sparse_gate.Plan(gate, 4).dense(logits)
    rows, size = logits.shape
    arguments = torch.ones(rows, 1), torch.zeros(size, 1), -logits[0], torch.ones(size), gate, 4, None, 1.0
    compiled = kernels.of(logits) if computes == "compiled" else None
    for row in range(rows):  # one row: its logits are the negative mean
        arguments = torch.ones(1, 1), torch.zeros(size, 1), -logits[row], torch.ones(size), gate, 4, None, 1.0
        found = (compiled.support if compiled else sparse_gate._find)(*arguments)
        if found is None:
            assert not bool(logits[row].amax().isfinite()) or size < 4
            continue
        values = found[0].square() if gate == "entmax15" else found[0]
        matrix = SparseCoefficients(values, found[1], found[2], size, values.dtype).to_dense()
        expected = dense[row : row + 1]
        if "topk" in gate:  # ties may go to other experts
            matrix, expected = matrix.sort(-1).values, expected.sort(-1).values
        torch.testing.assert_close(matrix, expected, rtol=2e-5, atol=2e-6)


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_is_not_finite_is_nan(bad: float, gate: str, dtype: torch.dtype, computes: str) -> None:
    layer = mumoe.MuMoE(8, 4, 900, rank=4, norm="none", gate=gate, dtype=dtype).eval()
    x = torch.randn(80, 8, dtype=dtype)
    x[3, 2] = bad
    for route in ("auto", "sparse", "dense"):
        y = with_route(layer, route)(x)
        assert y.isnan().all(-1).tolist() == [row == 3 for row in range(80)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_seen(
    bad: float, gate: str, norm: str, training: bool, dtype: torch.dtype, computes: str
) -> None:
    """Every row that the weight reaches is NaN on every route; before, such rows were 0."""
    layer = mumoe.MuMoE(8, 4, 900, rank=4, norm=norm, gate=gate, dtype=dtype)
    layer(torch.randn(80, 8, dtype=dtype))
    with torch.no_grad():
        layer.gate.weights[0][5, 2] = bad
    x = torch.randn(80, 8, dtype=dtype).abs() + 0.1  # +inf gives logits of +inf
    for route in ("auto", "sparse", "dense"):
        y = with_route(layer, route).train(training)(x)
        assert y.isnan().all(), route


def test_a_gate_of_zeros_takes_the_dense_path() -> None:
    layer = mumoe.MuMoE(8, 4, 900, rank=4, gate_init="zeros")
    assert taken(layer, torch.randn(300, 8)) == [DenseCoefficients]
    assert taken(mumoe.MuMoE(8, 4, 900, rank=4), torch.randn(300, 8)) == [SparseCoefficients]


def test_statistics_are_counted_once_when_the_sparse_path_gives_up() -> None:
    layer = mumoe.MuMoE(8, 4, 900, rank=4, gate_init="zeros").train()
    layer(torch.randn(300, 8))
    assert int(layer.gate.norms[0].num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", [0.3, 1.0, None])
def test_running_statistics(momentum: float | None) -> None:
    torch.manual_seed(0)
    layer = mumoe.MuMoE(8, 4, 900, rank=4).train()
    layer.gate.norms[0].momentum = momentum  # type: ignore[assignment]
    plain = nn.BatchNorm1d(900, affine=False, momentum=momentum)
    other = with_route(layer, "dense")
    for _ in range(3):
        x = torch.randn(100, 8) + 3
        layer(x)
        other(x)
        plain(x @ layer.gate.weights[0].T)
    for own in (layer, other):
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(getattr(own.gate.norms[0], name), buffer, rtol=1e-5, atol=1e-5)


def test_half_precision_layers_and_autocast() -> None:
    torch.manual_seed(0)
    layer, x = mumoe.MuMoE(16, 4, 900, rank=8).eval(), torch.randn(300, 16)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x).float(), expected, rtol=5e-2, atol=5e-2)
    half = copy.deepcopy(layer).bfloat16()
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=1e-1, atol=1e-1)


def test_a_block_shares_the_coefficients_of_both_layers() -> None:
    torch.manual_seed(0)
    block = mumoe.MuMoEBlock(12, 20, 7, num_experts=800, rank=6)
    x = torch.randn(5, 30, 12)
    assert difference(results(block, x, "sparse"), results(block, x, "dense"), 1e-2) < 2e-5
    assert taken(block, x.flatten(0, 1)) == [SparseCoefficients]


PROBE = """
import sys, torch, mumoe

def memory(key):
    lines = open('/proc/self/status').read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

torch.manual_seed(0)
layer = mumoe.MuMoE(64, 10, 65536, 'cp', 16)
for parameter in layer.parameters():
    parameter.grad = torch.zeros_like(parameter)
small = mumoe.MuMoE(64, 10, 2048, 'cp', 16)
x = torch.randn(256, 64, requires_grad=True)
small(x).sum().backward()
before = memory('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
layer(x).sum().backward()
print(memory('VmHWM') - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_a_training_step_holds_no_matrix_of_rows_and_experts() -> None:
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    gradients = 65536 * (64 + 16) * 4  # made before they are added to what is there
    matrix = 256 * 65536 * 4
    assert int(run.stdout) < gradients + matrix / 3


# Who is watched or patched is called ----------------------------------------------------------------------


def parts_of(layer: nn.Module) -> dict[str, nn.Module]:
    gate = layer.gate
    parts = (gate.routers[0], gate.norms[0], gate.activations[0], gate, layer.factorization)  # type: ignore
    return dict(zip(("router", "norm", "activation", "gate", "factorization"), parts, strict=True))


PARTS = ("router", "norm", "activation", "gate", "factorization")
ROWS_OF = {"one row": 1, "two rows": 2, "many rows": 300}


def large_layer(norm: str = "batch") -> mumoe.MuMoE:
    torch.manual_seed(0)
    layer = mumoe.MuMoE(8, 4, 900, rank=4, norm=norm)
    layer(torch.randn(100, 8))
    return layer.eval()


def by_hook(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    module.register_forward_hook(lambda *_: calls.append("seen"))


def by_pre_hook(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    module.register_forward_pre_hook(lambda *_: calls.append("seen"))


def by_instance(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    real = module.forward
    module.forward = lambda *given: calls.append("seen") or real(*given)  # type: ignore[method-assign]


def by_class(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    real = type(module).forward
    patch.setattr(type(module), "forward", lambda self, *given: calls.append("seen") or real(self, *given))


def by_global_hook(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    def see(seen: nn.Module, *_: object) -> None:
        if seen is module:
            calls.append("seen")

    handle = nn.modules.module.register_module_forward_hook(see)
    patch.setattr(sys, "_mumoe_test_handle", handle, raising=False)


def by_accelerate(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Seeing(hooks.ModelHook):  # type: ignore[misc, name-defined]
        def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> object:
            calls.append("seen")
            return args, kwargs

    hooks.add_hook_to_module(module, Seeing())


def by_subclass(module: nn.Module, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    class Own(type(module)):  # type: ignore[misc]
        def forward(self, *given: object) -> object:
            calls.append("seen")
            return super().forward(*given)

    module.__class__ = Own


WATCHES = (by_hook, by_pre_hook, by_instance, by_class, by_global_hook, by_accelerate, by_subclass)


@pytest.mark.parametrize("watch", WATCHES, ids=lambda watch: watch.__name__)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rows", ROWS_OF)
def test_who_is_watched_or_patched_is_called(
    watch: Callable[..., None], part: str, rows: str, monkeypatch: pytest.MonkeyPatch, computes: str
) -> None:
    layer, calls = large_layer(), list[str]()
    x = torch.randn(ROWS_OF[rows], 8)
    with torch.no_grad():
        expected = layer(x)
        watch(parts_of(layer)[part], calls, monkeypatch)
        try:
            torch.testing.assert_close(layer(x), expected, rtol=2e-5, atol=2e-6)
        finally:
            if watch is by_global_hook:
                sys._mumoe_test_handle.remove()  # type: ignore[attr-defined]
    assert calls == ["seen"]


def test_a_watched_gate_may_stay_sparse_and_its_output_may_be_replaced() -> None:
    layer, x, seen = large_layer(), torch.randn(300, 8), list[Coefficients]()
    handle = layer.gate.register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    y = layer(x)
    handle.remove()
    assert type(seen[0]) is SparseCoefficients
    layer.gate.register_forward_hook(lambda _m, _i, output: (2 * output[0].to_dense(),))
    torch.testing.assert_close(layer(x), layer.contract(x, [2 * seen[0].to_dense()]))
    assert not torch.allclose(layer(x), y)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_parametrized_and_pruned_routers_are_called(norm: str) -> None:
    from torch.nn.utils import parametrize, prune

    layer, x = large_layer(norm), torch.randn(300, 8)

    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    double = with_route(layer, "dense")
    with torch.no_grad():
        double.gate.weights[0].mul_(2)  # type: ignore[union-attr, index]
    parametrize.register_parametrization(layer.gate.routers[0], "weight", Twice())
    torch.testing.assert_close(layer(x), double(x))
    pruned = large_layer(norm)
    prune.l1_unstructured(pruned.gate.routers[0], "weight", amount=0.5)
    expected = with_route(large_layer(norm), "dense")
    with torch.no_grad():
        expected.gate.weights[0].copy_(pruned.gate.weights[0])  # type: ignore[union-attr, index]
    torch.testing.assert_close(pruned(x), expected(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_modes_transforms_and_subclasses_see_the_dense_gate() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = large_layer(), torch.randn(300, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 300 * (8 * 900 + 900 * 4 + 8 * 4 + 4 * 4)
    torch.testing.assert_close(torch.func.vmap(layer)(x.view(3, 100, 8)), layer(x).view(3, 100, 4))
    traced = torch.jit.trace(layer, x, check_trace=False)
    other = torch.randn(50, 8)
    torch.testing.assert_close(traced(other), layer(other))
    with torch.device("meta"):  # a default device changes nothing
        torch.testing.assert_close(layer(x), with_route(layer, "dense")(x))


def test_a_weight_is_never_remembered(computes: str) -> None:
    """Before, 8-bit copies of 32,768 experts and more were kept, and negated weights taken for unchanged ones."""
    layer = mumoe.MuMoE(32, 4, 33_000, rank=4, norm="none").eval()
    x = torch.randn(130, 32)
    with torch.no_grad():
        layer(x)
        for change in ("neg_", "mul_"):
            for router in layer.gate.routers:
                getattr(router.weight, change)(*[2] * (change == "mul_"))
            same([layer(x)], [with_route(layer, "dense")(x)], 2e-5)


# Precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", [*GATES, "softmax", "entmax"])
def test_backward_may_run_inside_autocast(route: str, kind: str, gate: str, computes: str) -> None:
    torch.manual_seed(0)
    layer = mumoe.MuMoE(16, 4, 60, kind, rank_of(kind, 4), gate=gate)
    x = torch.randn(30, 16)
    expected = results(layer, x, route)
    own = with_route(layer, route)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = own(x)
        weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        (y * weights).sum().backward()
    for found, wanted in zip([x.grad, *(p.grad for p in own.parameters())], expected[1:], strict=False):
        assert found is not None
        assert (found - wanted).norm() <= 0.1 * wanted.norm() + 1e-3


@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_does_not_depend_on_the_route_or_the_batch_size(autocast: bool, computes: str) -> None:
    torch.manual_seed(0)
    layer = mumoe.MuMoE(16, 32, 900, rank=64).eval()
    x = torch.randn(300, 16)
    if not autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        sparse, dense = with_route(layer, "sparse")(x), with_route(layer, "dense")(x)
        few = [with_route(layer, route)(x[:5]) for route in ("sparse", "dense", "auto")]
    assert taken(layer, x) == [SparseCoefficients]
    assert (sparse != dense).float().mean() < 0.02  # rounding of a product to the other side
    for y in few:
        assert (y != sparse[:5]).float().mean() < 0.02


# Cost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("frozen", ["input", "router", "factor"])
def test_a_gradient_that_is_not_asked_for_is_not_computed(
    norm: str, frozen: str, computes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = mumoe.MuMoE(16, 4, 900, rank=8, norm=norm)
    x = torch.randn(300, 16, requires_grad=frozen != "input")
    layer.gate.routers[0].requires_grad_(frozen != "router")
    layer.factorization.expert_factor_0.requires_grad_(frozen != "factor")  # type: ignore[union-attr]
    asked, real = [], sparse_gate._sparse_products
    monkeypatch.setattr(sparse_gate, "_sparse_products", lambda *given: asked.append(given[5:]) or real(*given))
    layer(x).square().sum().backward()
    assert asked == [(frozen != "input", frozen != "router")]
    assert (x.grad is None) == (frozen == "input")
    assert (layer.gate.weights[0].grad is None) == (frozen == "router")


def test_blocks_reach_the_sparse_gate() -> None:
    x = torch.randn(4, 75, 12)
    for kind in (mumoe.MuMoEGatedBlock, mumoe.MuMoEBlock):
        block = kind(12, 20, 7, num_experts=800, rank=6)
        assert type(block(x, return_coefficients="sparse")[1][0]) is SparseCoefficients
        same(results(block, x, "sparse"), results(block, x, "dense"), 5e-5)
    gated = mumoe.MuMoEGatedBlock(12, 20, 7, num_experts=800, rank=6)
    with gated.ablate([3, 5]), with_route(gated, "dense").ablate([3, 5]) as dense:
        torch.testing.assert_close(gated.eval()(x), dense.eval()(x), rtol=2e-5, atol=2e-5)


def test_a_router_subclass_is_a_linear_layer_without_bias() -> None:
    gate = Gate(8, (900, 3))
    assert all(isinstance(router, nn.Linear) and router.bias is None for router in gate.routers)
    assert all(type(router) is Router for router in gate.routers)


WALK = """
import sys, torch, mumoe
root = mumoe.__file__.rsplit("/", 1)[0]
layer, x = mumoe.MuMoE(64, 10, num_experts=1024, rank=8).eval(), torch.randn(256, 64)
seen = []
def see(frame, event, arg):
    if event == "call" and frame.f_code.co_filename.startswith(root):
        seen.append((frame.f_code.co_filename, frame.f_code.co_qualname))
with torch.no_grad():
    layer(x), layer(x)
    sys.setprofile(see); layer(x); sys.setprofile(None)
assert any("coefficients" in name for name, _ in seen)
print(len(seen), len(set(seen)), len({name for name, _ in seen}))
"""


def test_one_forward_is_a_short_walk() -> None:
    run = subprocess.run([sys.executable, "-c", WALK], capture_output=True, text=True, check=True)
    calls, functions, files = map(int, run.stdout.split())
    assert calls <= 30
    assert functions <= 20
    assert files <= 8
