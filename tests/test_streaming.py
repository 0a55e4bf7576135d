"""The sparse path of the layers: the same numbers as the dense one, and when it is taken."""

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
from mumoe import backends, functional, streaming
from mumoe.blocked import BlockedSoftmax
from mumoe.gating import Gate
from mumoe.sparse import SparseCoefficients

RANKS = {"cp": 12, "tucker": 6, "tt": 8, "tr": 8}
GATES = ("entmax15", "sparsemax", "topk")
ALL_GATES = (*GATES, "softmax")


def results(layer: nn.Module, x: Tensor, path: str | None) -> list[Tensor]:
    """Output, gradients of the input and all parameters, buffers after the step."""
    own, x = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    with streaming.forced(path):
        y = own(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    grads = torch.autograd.grad((y * weights).sum(), [x, *own.parameters()])
    return [y.detach(), *grads, *own.buffers()]


def difference(a: list[Tensor], b: list[Tensor], floor: float) -> float:
    """Largest difference, relative to the largest entry of each tensor or of nothing smaller than `floor`."""
    return max(float((p - q).abs().max() / q.abs().max().clamp(min=floor)) for p, q in zip(a, b, strict=True))


def taken(layer: nn.Module, x: Tensor, path: str | None = None) -> list[type]:
    """What the layer's gate gives."""
    with streaming.forced(path):
        return [type(a) for a in layer._mixture(x, [], False)]  # type: ignore[operator]


@pytest.mark.parametrize("factorization", RANKS)
@pytest.mark.parametrize("gate", ALL_GATES)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_both_paths_give_the_same_numbers(factorization: str, gate: str, norm: str, training: bool) -> None:
    torch.manual_seed(0)
    options = {"k": 5} if gate == "topk" else {}
    layer = mumoe.MuMoE(
        24, 10, (600, 3), factorization, RANKS[factorization], gate=gate, norm=norm, gate_options=options, sigma=(1, 1)
    ).double()
    layer.train(training)
    x = torch.randn(40, 24, dtype=torch.float64)
    assert (BlockedSoftmax if gate == "softmax" else SparseCoefficients) in taken(layer, x, "sparse")
    assert difference(results(layer, x, "sparse"), results(layer, x, "dense"), 1e-6) < 1e-9


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


def soft() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(32, 9, (700, 3), rank=8, gate="softmax"), torch.randn(64, 32) + 5


def many_rows() -> tuple[mumoe.MuMoE, Tensor]:
    return mumoe.MuMoE(8, 9, 600, rank=8), torch.randn(900, 8)  # the Gram matrix pays


CASES: list[Callable[[], tuple[mumoe.MuMoE, Tensor]]] = [
    plain_inputs, large_mean, duplicates, ties, wide_support, uneven_support, one_expert, small_level, odd_sizes,
    many_rows
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_single_precision_on_hard_inputs(case: Callable[[], tuple[mumoe.MuMoE, Tensor]]) -> None:
    torch.manual_seed(0)
    layer, x = case()
    exact = results(copy.deepcopy(layer).double(), x.double(), "dense")
    found = [tensor.double() for tensor in results(layer, x, "sparse")]
    plain = [tensor.double() for tensor in results(layer, x, "dense")]
    largest = max(float(tensor.abs().max()) for tensor in exact[:2])
    error, other = difference(found, exact, largest), difference(plain, exact, largest)
    assert error < max(2e-6, 2 * other), f"dense {other:.1e}"


def test_repeats_are_equal_to_the_bit() -> None:
    torch.manual_seed(0)
    layer, x = plain_inputs()
    first = results(layer, x, "sparse")
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, results(layer, x, "sparse"), strict=True))


@pytest.mark.parametrize("gate", ["entmax15", "softmax"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives(gate: str, norm: str, training: bool) -> None:
    torch.manual_seed(1)
    layer = mumoe.MuMoE(3, 2, (9, 2), "cp", 2, norm=norm, gate=gate).double().train(training)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        with streaming.forced("sparse"):
            y: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)) | state, (x,))
        return y

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)


ROWS = st.tuples(st.integers(1, 3), st.integers(1, 300))
NUMBERS = st.floats(-40, 40, width=32) | st.sampled_from([0.0, 1.0, -1.0, -2.0, 2.0, 1e-7, -float("inf")])


@settings(max_examples=150, deadline=None)
@given(st.data(), ROWS, st.sampled_from(GATES))
def test_the_bound_never_loses_a_member_of_the_support(data: st.DataObject, shape: tuple[int, int], gate: str) -> None:
    logits = torch.from_numpy(data.draw(arrays.arrays("float32", shape, elements=NUMBERS, fill=NUMBERS)))
    dense = {
        "entmax15": functional.entmax15,
        "sparsemax": functional.sparsemax,
        "topk": lambda x: functional.topk_softmax(x, 4),
    }[gate](logits)
    search = backends._Search(*logits.shape, gate, 4, logits)
    for start in range(0, logits.shape[1], search.block):
        part = logits[:, start : start + search.block]
        search.buffer[:, : part.shape[1]] = part
        if not search.take(start, part.shape[1]):
            return
    slack, indices, offsets, _ = search.solve()
    values = slack.square() if gate == "entmax15" else slack
    found = SparseCoefficients(values, indices, offsets, logits.shape[1]).to_dense()
    whole = logits.isfinite().any(-1)
    ordered = (lambda p: p.sort(-1).values) if gate == "topk" else (lambda p: p)  # ties may go to other experts
    torch.testing.assert_close(ordered(found)[whole], ordered(dense)[whole], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_answer_as_the_dense_gate(bad: float) -> None:
    layer = mumoe.MuMoE(8, 4, 900, rank=4, norm="none").eval()
    x = torch.randn(80, 8)
    x[3, 2] = bad
    with streaming.forced("dense"):
        expected = layer(x)
    y = layer(x)
    assert y[3].isnan().all()
    assert torch.equal(y.isnan(), expected.isnan())


def test_a_gate_of_zeros_takes_the_dense_path() -> None:
    layer = mumoe.MuMoE(8, 4, 900, rank=4, gate_init="zeros")
    assert taken(layer, torch.randn(300, 8)) == [Tensor]
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
    other = copy.deepcopy(layer)
    for _ in range(3):
        x = torch.randn(100, 8) + 3
        layer(x)
        with streaming.forced("dense"):
            other(x)
        plain(x @ layer.gate.weights[0].T)
    for own in (layer, other):
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(getattr(own.gate.norms[0], name), buffer, rtol=1e-5, atol=1e-5)


def test_whoever_watches_the_gate_sees_the_dense_one() -> None:
    layer, x = mumoe.MuMoE(8, 4, 900, rank=4).eval(), torch.randn(300, 8)
    seen: list[tuple[Tensor, ...]] = []
    handle = layer.gate.register_forward_hook(lambda _m, _i, output: seen.append(output))
    y = layer(x)
    handle.remove()
    assert seen[0][0].shape == (300, 900)
    torch.testing.assert_close(layer(x), y, rtol=2e-5, atol=2e-6)
    _, (a,) = layer(x, return_coefficients=True)
    assert isinstance(a, Tensor)

    class Own(Gate):
        """A gate of a user's."""

    layer.gate.__class__ = Own
    assert taken(layer, x) == [Tensor]


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


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_row_alone(rows: int, gate: str, norm: str) -> None:
    torch.manual_seed(0)
    layer = mumoe.MuMoE(16, 5, (300, 40), rank=8, gate=gate, norm=norm).eval()
    x = torch.randn(rows, 16)
    with torch.no_grad():
        y = layer(x)
        assert taken(layer, x) == [SparseCoefficients] * 2
        with streaming.forced("dense"):
            torch.testing.assert_close(y, layer(x), rtol=2e-5, atol=2e-6)
        assert layer(torch.full_like(x, float("nan"))).isnan().all()
        layer.gate.reset_parameters()
        for weight in layer.gate.weights:
            weight.zero_()
        assert torch.equal(layer(x), layer(x))


def test_a_row_alone_goes_the_short_way_unless_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = mumoe.MuMoE(16, 5, 300, rank=8).eval(), torch.randn(1, 3, 16)[:, :1]
    short = []
    real = streaming.mixtures
    monkeypatch.setattr(streaming, "mixtures", lambda *given: short.append(real(*given)) or short[-1])
    with torch.no_grad():
        y = layer(x)
        assert y.shape == (1, 1, 5)
        assert short[-1] is not None
        torch.testing.assert_close(layer(x, return_coefficients=True)[0], y, rtol=2e-5, atol=2e-6)
        with layer.ablate(7):
            layer(x)
        seen = []
        handles = [m.register_forward_hook(lambda *given: seen.append(1)) for m in (layer.gate, layer.factorization)]
        torch.testing.assert_close(layer(x), y, rtol=2e-5, atol=2e-6)
        assert len(seen) == 2
        for handle in handles:
            handle.remove()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64
    assert sum(mixed is not None for mixed in short) == 1
    layer(x.double().requires_grad_()).sum().backward()
    assert sum(mixed is not None for mixed in short) == 1


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
