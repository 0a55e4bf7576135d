"""The kernels as operators: compile, export, autocast and the FLOP counter see them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mumoe import native

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")  # compile has a test of its own


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(20, 16), torch.randn(300, 16), torch.randn(300, 8)


def gate_and_bag(x: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
    kernels = native.kernels("cpu")
    found = kernels.support(x, weight, None, None, kind="entmax15", k=0, batch_statistics=True, eps=1e-5)
    assert found is not None
    assert found.var is not None
    entries = (found.slack * found.slack, found.indices, found.offsets)
    mixed = kernels.bag(*entries, factor)
    grad_values, grad_factor = kernels.bag_backward(mixed, *entries, factor)
    rstd = (found.var + 1e-5).rsqrt()
    back = kernels.gate_backward(x, weight, rstd, *entries[1:], grad_values, found.normalized, True)
    return mixed, grad_factor, *back


def test_operators_are_registered_right() -> None:
    from mumoe.native import ops

    x, weight, factor = inputs()
    kernels = native.kernels()
    found = kernels.support(x, weight, None, None, kind="entmax15", k=0, batch_statistics=True, eps=1e-5)
    assert found is not None
    assert found.var is not None
    entries = (found.slack, found.indices, found.offsets)
    back = (x, weight, (found.var + 1e-5).rsqrt(), *entries[1:], found.slack, found.normalized, True)
    for operator, arguments in (
        (ops.native_support, (x, weight, None, None, "entmax15", 0, True, 1e-5)),
        (ops.native_support, (x, weight, None, None, "topk", 2, False, 1e-5)),
        (ops.native_bag, (*entries, factor)),
        (ops.native_bag_backward, (torch.randn(20, 8), *entries, factor)),
        (ops.native_gate_backward, back),
    ):
        results = torch.library.opcheck(operator, arguments, test_utils=CHECKS)
        assert set(results.values()) == {"SUCCESS"}


def test_compiles_in_one_graph_to_the_same_bits() -> None:
    x, weight, factor = inputs()
    eager = gate_and_bag(x, weight, factor)
    torch.compiler.reset()
    compiled = torch.compile(gate_and_bag, fullgraph=True, backend="aot_eager")(x, weight, factor)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


class Mixture(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, self.weight, self.factor = inputs()

    def forward(self, x: Tensor) -> Tensor:
        weight, factor = self.weight, self.factor
        kernels = native.kernels("cpu")
        found = kernels.support(x, weight, None, None, kind="sparsemax", k=0, batch_statistics=False, eps=0.0)
        assert found is not None
        return kernels.bag(found.slack, found.indices, found.offsets, factor)


def test_exports_with_any_number_of_rows() -> None:
    x, _, _ = inputs()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Mixture(), (x,), dynamic_shapes={"x": {0: rows}}, strict=False)
    other = torch.randn(7, 16)
    assert torch.equal(program.module()(other), Mixture()(other))


def test_the_flop_counter_counts_what_is_computed() -> None:
    x, weight, factor = inputs()
    found = native.kernels().support(x, weight, None, None, kind="entmax15", k=0, batch_statistics=True, eps=1e-5)
    assert found is not None
    with FlopCounterMode(display=False) as counter:
        gate_and_bag(x, weight, factor)
    by_name = {str(name).rpartition(".")[2]: count for name, count in counter.get_flop_counts()["Global"].items()}
    entries = found.indices.numel()
    assert by_name["native_support"] == 2 * 20 * 16 * 300
    assert by_name["native_bag"] == 2 * entries * 8
    assert by_name["native_bag_backward"] == 4 * entries * 8
    gram = 4 * 20 * 16**2 + 4 * 16**2 * 300 + 4 * entries * 16
    assert by_name["native_gate_backward"] == min(gram, 6 * 20 * 16 * 300)


def test_autocast_changes_nothing() -> None:
    x, weight, factor = inputs()
    eager = gate_and_bag(x, weight, factor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gate_and_bag(x, weight, factor)
        half = torch.ops.mumoe.native_bag(torch.ones(1).bfloat16(), torch.tensor([2]), torch.tensor([0, 1]), factor)
    assert all(torch.equal(a, b) for a, b in zip(eager, cast, strict=True))
    assert torch.equal(half, factor[2:3])


@pytest.mark.parametrize("kind", ["entmax15", "sparsemax", "topk"])
def test_an_operator_answers_where_a_kernel_declines(kind: str) -> None:
    from mumoe.native import ops

    x, weight, _ = inputs()
    x[3] = torch.nan
    slack, indices, offsets, *_ = ops.native_support(x, weight, None, None, kind, 2, False, 1e-5)
    row = slice(int(offsets[3]), int(offsets[4]))
    assert slack[row].isnan().all()
    assert indices[row].tolist() == list(range(300))
    clean = torch.cat([x[:3], x[4:]])
    expected = ops.native_support(clean, weight, None, None, kind, 2, False, 1e-5)
    rest = torch.cat([slack[: row.start], slack[row.stop :]])
    assert torch.allclose(rest, expected[0], atol=1e-6)
