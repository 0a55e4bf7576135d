"""Options of the gate itself: the scale of its logits, and dropout on its input."""

from __future__ import annotations

import pytest
import torch

from mumoe import MuMoE, functional
from mumoe.errors import UserError
from mumoe.gating import Gate


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_scale_multiplies_the_logits_after_the_norm(norm, training) -> None:
    torch.manual_seed(0)
    plain = Gate(16, (12, 3), "entmax15", norm, options={}).train(training)
    scaled = Gate(16, (12, 3), "entmax15", norm, options={"scale": 0.25}).train(training)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(40, 16)
    for level, logits in enumerate(plain.logits(x)):
        expected = functional.entmax15(0.25 * logits)
        assert torch.allclose(scaled(x)[level].to_dense(), expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("kind", "options"), [("entmax15", {}), ("sparsemax", {}), ("topk", {"k": 4})])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sparse_gate_scales_as_the_dense_one(norm, kind, options, training, dtype) -> None:
    torch.manual_seed(0)
    gate = Gate(32, 1024, kind, norm, options={**options, "scale": 0.7}, dtype=dtype).train(training)
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    found = {}
    for route in ("dense", "sparse"):
        gate.load_state_dict(before)
        gate.route = route
        gate.zero_grad()
        x = torch.randn(128, 32, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
        coefficients = gate(x)[0]
        dense = coefficients.to_dense()
        (dense * torch.sin(torch.arange(1024, dtype=dtype))).sum().backward()
        found[route] = [dense.detach(), x.grad, gate.routers[0].weight.grad, *gate.buffers()]
        found[route] = [value.clone() for value in found[route]]
        assert type(coefficients).__name__ == {"dense": "DenseCoefficients", "sparse": "SparseCoefficients"}[route]
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    for dense, sparse in zip(found["dense"], found["sparse"], strict=True):
        assert torch.allclose(dense, sparse, rtol=tolerance, atol=tolerance * float(dense.abs().max()))


def test_second_derivatives_of_the_scaled_sparse_gate() -> None:
    torch.manual_seed(0)
    gate = Gate(6, 12, "entmax15", "batch", options={"scale": 0.6}, dtype=torch.float64)
    gate.route = "sparse"
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        return gate(x)[0].to_dense()

    assert torch.autograd.gradcheck(run, (x,), eps=1e-6, atol=1e-5)
    assert torch.autograd.gradgradcheck(run, (x,), eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("route", ["dense", "sparse"])
def test_running_statistics_are_those_without_dropout(route) -> None:
    """Dropout of a half doubles the variance of the logits; evaluation has none, and so have its statistics."""
    torch.manual_seed(0)
    gate = Gate(256, 64, "entmax15", "batch", options={"dropout": 0.5}, route=route)
    x = torch.randn(4000, 256) + 0.3
    for _ in range(3):
        for batch in x.split(500):
            gate(batch)
    norm, logits = gate.norms[0], gate.routers[0](x).detach()
    assert int(norm.num_batches_tracked) == 24
    assert torch.allclose(norm.running_var, logits.var(0), rtol=0.15)
    assert torch.allclose(norm.running_mean, logits.mean(0), atol=0.15)
    with torch.no_grad():
        dropped = gate.routers[0](torch.nn.functional.dropout(x, 0.5)).var(0)
    assert float((dropped / logits.var(0)).mean()) > 1.8  # what they would be without correction


def test_gradients_flow_through_a_gate_with_dropout_and_evaluation_has_none() -> None:
    torch.manual_seed(0)
    gate = Gate(16, 8, "entmax15", "batch", options={"dropout": 0.5})
    x = torch.randn(32, 16, requires_grad=True)
    first, second = gate(x)[0].to_dense(), gate(x)[0].to_dense()
    assert not torch.equal(first, second)
    first[:, 0].sum().backward()
    assert x.grad.any()
    assert gate.routers[0].weight.grad.any()
    gate.eval()
    assert torch.equal(gate(x)[0].to_dense(), gate(x)[0].to_dense())


def test_dropout_of_experts_and_gate_are_drawn_apart() -> None:
    torch.manual_seed(0)
    layer = MuMoE(16, 4, 8, rank=4, drop=0.5)
    x = torch.randn(32, 16)
    _, first = layer(x, return_coefficients=True)
    y, second = layer(x, return_coefficients=True)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(y, layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    "options", [{"scale": 0.0}, {"scale": -1}, {"scale": "a"}, {"dropout": 1.0}, {"dropout": -0.1}, {"dropout": True}]
)
def test_options_out_of_range_are_one_line(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        MuMoE(8, 3, 4, rank=2, gate_options=options)
    with pytest.raises(UserError, match="drop"):
        MuMoE(8, 3, 4, rank=2, drop=1.0)
