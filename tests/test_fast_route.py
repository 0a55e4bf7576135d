"""The fast route of a gate gives the dense route's numbers: outputs and gradients, at one and two rows too.

Everything goes through the public layers. `on_route` is the one place that knows how a route is forced.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import mumoe
from mumoe.gating import NORMS, Gate
from mumoe.layers import MuMoEGatedBlock

GATES = {
    "entmax15": {},
    "entmax": {"alpha": 1.3},
    "sparsemax": {},
    "softmax": {},
    "topk": {"k": 5},
    "relu_topk": {"k": 5},
    "softrank": {"regularization": 0.5},
}
LAYERS = ("layer", "hierarchy", "block", "gated block")
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}


@contextlib.contextmanager
def on_route(layer: nn.Module, route: str) -> Iterator[None]:
    """Within the context the layer's gates take a route: dense, sparse or auto."""
    gates = [module for module in layer.modules() if isinstance(module, Gate)]
    before = [gate.route for gate in gates]
    for gate in gates:
        gate.route = route
    yield
    for gate, old in zip(gates, before, strict=True):
        gate.route = old


def make(kind: str, gate: str, norm: str, dtype: torch.dtype) -> nn.Module:
    """A layer of more experts than share a row, its batch statistics not those it starts with."""
    torch.manual_seed(3)
    options = {"gate": gate, "norm": norm, "gate_options": GATES[gate]}
    experts = 12 if gate == "softrank" else 70  # ranks are quadratic
    if kind == "layer":
        layer: nn.Module = mumoe.MuMoE(12, 5, experts, rank=7, **options)
    elif kind == "hierarchy":
        layer = mumoe.MuMoE(12, 5, (experts, 3), rank=7, sigma=(1, 1), **options)
    elif kind == "block":
        layer = mumoe.MuMoEBlock(12, 9, 5, num_experts=experts, rank=7, **options)
    else:
        layer = MuMoEGatedBlock(12, 9, 5, num_experts=experts, rank=7, **options)
    layer.train()
    with torch.no_grad():
        for _ in range(3):
            layer(torch.randn(40, 12) + 0.3)
    return layer.to(dtype)


def answers(layer: nn.Module, x: Tensor, route: str) -> dict[str, Tensor]:
    """Output, gradients of input and parameters, and buffers afterwards, by name."""
    own, x = copy.deepcopy(layer), x.clone().requires_grad_()
    with on_route(own, route):
        y = own(x)
        direction = torch.linspace(-1, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
        names, values = zip(*own.named_parameters(), strict=True)
        grads = torch.autograd.grad((y * direction).sum(), [x, *values])
    return {"output": y.detach(), **dict(zip(("input", *names), grads, strict=True)), **dict(own.named_buffers())}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of its largest entry; gates of 0 gradient may differ by rounding alone."""
    largest = max(float(expected[name].abs().max()) for name in ("output", "input"))
    assert largest > 1e-3, "nothing to compare"
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-2 * largest)
        worst = float((found[name].to(value.dtype) - value).abs().max())
        assert worst <= tolerance * scale, f"{name}: {worst / scale:.1e}"


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate", GATES)
def test_gradients_are_those_of_the_dense_route(kind: str, norm: str, gate: str) -> None:
    for dtype, tolerance in EXACT.items():
        layer = make(kind, gate, norm, dtype)
        for training in (False, True):
            layer.train(training)
            for rows in (1, 2, 9):
                if training and norm == "batch" and rows == 1:
                    continue  # refused: a batch of one has no statistics
                x = torch.randn(rows, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
                exact = answers(copy.deepcopy(layer).double(), x, "dense")
                for route in ("dense", "sparse", "auto"):
                    assert_same(answers(layer, x.to(dtype), route), exact, tolerance)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate", GATES)
def test_answers_without_gradients_are_those_of_the_dense_route(kind: str, norm: str, gate: str) -> None:
    """One or two rows take a short way when no gradient is asked for."""
    for dtype, tolerance in EXACT.items():
        layer = make(kind, gate, norm, dtype).eval()
        for rows in (1, 2, 9):
            x = torch.randn(rows, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
            with torch.no_grad():
                with on_route(layer, "dense"):
                    exact = copy.deepcopy(layer).double()(x)
                assert float(exact.abs().max()) > 1e-3
                for route in ("sparse", "auto"):
                    with on_route(layer, route):
                        y = layer(x.to(dtype))
                    assert float((y.double() - exact).abs().max()) <= tolerance * float(exact.abs().max())


@pytest.mark.parametrize("gate", ["entmax15", "sparsemax", "topk"])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_the_gate_itself_has_a_gradient_on_every_route(gate: str, rows: int) -> None:
    """Where several experts share a row, what the gate learns is not zero, so that the comparisons above mean it."""
    layer = make("layer", gate, "none", torch.float64)
    x = 0.2 * torch.randn(rows, 12, dtype=torch.float64)
    for route in ("dense", "sparse", "auto"):
        found = answers(layer, x, route)
        grad = found["gate.routers.0.weight"]
        assert float(grad.abs().max()) > 1e-4
        assert int((grad.abs().sum(1) > 0).sum()) > 1
