"""Initial factors: every layer starts like a linear layer, and every factor learns at the same pace."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mumoe import MuMoE, MuMoEBlock, MuMoEGatedBlock
from mumoe.errors import UserError

INPUTS, OUTPUTS, ROWS = 640, 60, 512

LAYERS = [
    ("cp", 16, 8),
    ("cp", 64, 128),
    ("cp", 256, 512),
    ("cp", 256, (128, 4)),
    ("cp", 256, (16, 4, 4)),
    ("hadamard", None, 128),
    ("hadamard", None, (32, 4)),
    ("tucker", 16, 128),
    ("tucker", 66, 64),
    ("tucker", 66, (64, 4)),
    ("tucker", {"out": 32, "in": 64, "experts": 8}, 16),
    ("tt", 70, 128),
    ("tt", 70, (128, 4)),
    ("tr", 70, 128),
    ("tr", 256, 64),
    ("tr", 70, (16, 4, 4, 2)),
    ("tr", {"out-in": 32, "in-expert": 6, "expert-expert": 2, "expert-out": 3}, (16, 8)),
    ("dense", None, 16),
    ("dense", None, (8, 4)),
]


def _layer(kind: str, rank: object, experts: object, **options: object) -> MuMoE:
    torch.manual_seed(0)
    return MuMoE(INPUTS, OUTPUTS, experts, kind, rank, **options)  # type: ignore[arg-type]


def _linear_deviation() -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        return float(torch.nn.Linear(INPUTS, OUTPUTS)(torch.randn(4096, INPUTS)).std())


@pytest.mark.parametrize(("kind", "rank", "experts"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_are_as_large_as_those_of_a_linear_layer(kind, rank, experts, dtype) -> None:
    layer = _layer(kind, rank, experts, dtype=dtype)
    with torch.no_grad():
        found = float(layer(torch.randn(ROWS, INPUTS, dtype=dtype)).double().std())
    assert found == pytest.approx(_linear_deviation(), rel=0.1)


@pytest.mark.parametrize(("kind", "rank", "experts"), LAYERS)
def test_single_experts_have_the_variance_of_a_linear_layer(kind, rank, experts) -> None:
    layer = _layer(kind, rank, experts)
    levels = layer.num_experts
    some = [tuple(sample * size // 8 for size in levels) for sample in range(8)]
    with torch.no_grad():
        found = torch.stack([layer.expert_weight(index) for index in some]).double()
    # a bond of 4 makes an expert's scale a sum of four random numbers
    assert found.square().mean().sqrt() == pytest.approx((3 * INPUTS) ** -0.5, rel=0.2)


def _gradient_norms(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, float]:
    labels = torch.arange(len(x)) % OUTPUTS
    F.cross_entropy(layer(x), labels).backward()
    return {name: float(parameter.grad.norm()) for name, parameter in layer.named_parameters()}


@pytest.mark.parametrize(("kind", "rank", "experts"), LAYERS)
def test_gradients_of_all_factors_are_within_a_decade(kind, rank, experts) -> None:
    layer = _layer(kind, rank, experts)
    norms = _gradient_norms(layer, torch.randn(ROWS, INPUTS))
    factors = [value for name, value in norms.items() if not name.startswith("gate")]
    assert max(factors) < 10 * min(factors)
    gates = [value for name, value in norms.items() if name.startswith("gate")]
    assert max(gates) < 30 * min(gates)  # with equal experts on later levels the ratio was 1e9


@pytest.mark.parametrize(("kind", "rank", "experts"), LAYERS)
def test_a_silent_layer_is_zero_and_every_parameter_learns_from_the_second_step(kind, rank, experts) -> None:
    layer = _layer(kind, rank, experts, init="zero")
    x = torch.randn(ROWS, INPUTS)
    assert not layer(x).any()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    first = _gradient_norms(layer, x)
    assert max(first.values()) > 0
    optimizer.step()
    optimizer.zero_grad()
    assert min(_gradient_norms(layer, x).values()) > 0


@pytest.mark.parametrize("kind", [MuMoEBlock, MuMoEGatedBlock])
def test_only_the_last_layer_of_a_silent_block_is_silent(kind) -> None:
    torch.manual_seed(0)
    block = kind(32, 64, num_experts=8, rank=16, init="zero")
    x = torch.randn(64, 32)
    assert not block(x).any()
    assert all(part.to_dense().any() for part in block.parts[:-1])


def test_noise_between_experts_is_as_given() -> None:
    torch.manual_seed(0)
    same = MuMoE(32, 8, (16, 4), "cp", 8, sigma=(0.0, 0.0))
    assert torch.equal(same.expert_weight((0, 0)), same.expert_weight((15, 3)))
    noisy = MuMoE(32, 8, (400, 4), "cp", 64, sigma=(2.0, 0.0)).factorization
    factor = noisy.expert_factor_0.detach() / noisy.expert_factor_0.detach().mean()
    assert float(factor.std()) == pytest.approx(2.0, rel=0.1)


def test_the_papers_start_is_there_by_name_and_unknown_ones_are_refused() -> None:
    torch.manual_seed(0)
    layer = MuMoE(32, 8, (6, 3), "cp", 5, init="paper").factorization
    assert layer.out_factor.norm(dim=0).sub(1).abs().max() < 1e-6
    assert torch.equal(layer.expert_factor_1, torch.ones(3, 5))
    with pytest.raises(UserError, match="init"):
        MuMoE(32, 8, 6, "cp", 5, init="scale")


def test_the_papers_start_grows_with_rank() -> None:
    """The control of the first test: this is what ``scaled`` is for."""
    with torch.no_grad():
        found = [float(_layer("cp", rank, 128, init="paper")(torch.randn(ROWS, INPUTS)).std()) for rank in (64, 1024)]
    assert found[1] > 3 * found[0] > 3 * _linear_deviation()
    assert math.isfinite(found[1])
