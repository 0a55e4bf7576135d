"""The layer against answers worked out from its dense weight: nested ablations, initial noise, matched ranks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import mumoe
from mumoe.costs import count_parameters, rank_for_budget
from mumoe.models.heads import build_head, matched_spec

RANKS: dict[str, Any] = {"cp": 6, "tucker": 4, "tt": 5, "tr": 5, "dense": None}

# Nested ablations -------------------------------------------------------------------------------------------------


def dense_answer(layer: mumoe.MuMoE, x: Tensor, ablated: Sequence[tuple[int, int]]) -> Tensor:
    """The output with the weight of these (level, expert) set to zero, by the definition."""
    weight = layer.to_dense().detach().clone()
    for level, expert in ablated:
        weight.select(2 + level, expert).zero_()
    rows = torch.cat([x, x.new_ones(len(x), 1)], 1)
    letters = "abc"[: len(layer.num_experts)]
    inputs = ",".join(f"z{letter}" for letter in letters)
    return torch.einsum(f"oi{letters},zi,{inputs}->zo", weight, rows, *layer.coefficients(x))


NESTS = [
    ([(0, 1)], [(0, 3)]),
    ([(0, 1)], [(0, 1)]),
    ([(1, 0)], [(1, 2)]),
    ([(0, 1)], [(1, 2)]),
    ([(0, 1)], [(1, 2)], [(0, 4)]),
    ([(0, 1), (0, 2)], [(0, 3)]),
]


@pytest.mark.parametrize("factorization", RANKS)
@pytest.mark.parametrize("nest", NESTS, ids=str)
def test_nested_ablations_zero_the_weights_of_all(factorization: str, nest: Any) -> None:
    layer = mumoe.MuMoE(7, 4, (5, 3), factorization, RANKS[factorization], sigma=(1, 1), gate="softmax").double().eval()
    x = torch.randn(6, 7, dtype=torch.float64)
    plain = layer(x)
    ablated: list[tuple[int, int]] = []
    with contextlib.ExitStack() as stack, torch.no_grad():
        for inner in nest:
            before = layer(x)
            stack.enter_context(layer.ablate([expert for _, expert in inner], level=inner[0][0]))
            again = set(inner) <= set(ablated)
            ablated += inner
            torch.testing.assert_close(layer(x), dense_answer(layer, x, ablated), atol=1e-10, rtol=0)
            assert again or float((layer(x) - before).abs().max()) > 1e-4
    torch.testing.assert_close(layer(x), plain, atol=0, rtol=0)


@pytest.mark.parametrize("factorization", RANKS)
def test_nested_ablations_of_a_layer_with_one_level(factorization: str) -> None:
    layer = mumoe.MuMoE(7, 4, 5, factorization, RANKS[factorization], gate="softmax").double().eval()
    x = torch.randn(6, 7, dtype=torch.float64)
    with layer.ablate(1), torch.no_grad():
        outer = layer(x)
        with layer.ablate([3]):
            torch.testing.assert_close(layer(x), dense_answer(layer, x, [(0, 1), (0, 3)]), atol=1e-10, rtol=0)
            assert float((layer(x) - outer).abs().max()) > 1e-4
        torch.testing.assert_close(layer(x), outer, atol=0, rtol=0)


# The scale of the noise of an initialization ----------------------------------------------------------------------


@pytest.mark.parametrize("factorization", [name for name in RANKS if name != "dense"])
def test_expert_factors_are_noise_around_one(factorization: str) -> None:
    """sigma is the standard deviation between the experts of each level, in the factor of its mode (or diagonal)."""
    sigma = (0.5, 0.02)
    options = {"sigma": sigma, "init": "paper", "bias": False}
    layer = mumoe.MuMoE(6, 5, (4000, 3000), factorization, RANKS[factorization], **options)
    for level, noise in enumerate(sigma):
        (factor,) = [value for name, value in layer.factorization.named_parameters() if name.endswith(f"_{level}")]
        if factor.ndim == 3:
            size = min(factor.shape[1:])
            factor = factor[:, range(size), range(size)]
        factor = factor.detach()
        spread = float(factor.std(0).pow(2).mean().sqrt())
        assert spread == pytest.approx(noise, rel=0.05)
        if factorization != "tucker" or level == 0:
            assert float(factor.mean()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("factorization", RANKS)
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5])
def test_experts_copied_from_a_linear_layer_differ_by_sigma(factorization: str, sigma: float) -> None:
    linear = torch.nn.Linear(12, 9)
    layer = mumoe.MuMoE.from_linear(linear, 600, factorization, sigma=sigma)
    weights = torch.stack([layer.expert_weight(n) for n in range(600)]).detach()
    difference = (weights - linear.weight.detach()).pow(2).mean().sqrt() / linear.weight.detach().pow(2).mean().sqrt()
    expected = {"tucker": sigma * 2 / 4}.get(factorization, sigma)  # a mean over 4 columns: sigma / sqrt(4)
    assert float(difference) == pytest.approx(expected, rel=0.15, abs=1e-5)


# Ranks for a budget, with several levels --------------------------------------------------------------------------

LEVELS = [(6,), (6, 3), (5, 3, 2), (4, 3, 2, 2)]


def parameters(factorization: str, levels: Sequence[int], rank: Any) -> int:
    """Parameters of the layer itself."""
    layer = mumoe.MuMoE(23, 11, levels, factorization, rank)
    return sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("factorization", ["cp", "tucker", "tt", "tr"])
def test_the_rank_closest_to_a_budget(factorization: str, levels: tuple[int, ...]) -> None:
    sizes = {rank: parameters(factorization, levels, rank) for rank in range(1, 16)}
    assert len(set(sizes.values())) == len(sizes)
    for rank, other in itertools.pairwise(range(2, 15)):
        low, high = sizes[rank], sizes[other]
        for budget, expected in ((low, rank), (low + 1, rank), (high - 1, other), (high, other)):
            found = rank_for_budget(
                parameters=budget, in_features=23, out_features=11, num_experts=levels, factorization=factorization
            )
            assert found == expected, budget


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("title", ["CPMuMoE", "TRMuMoE", "TuckerMuMoE", "TTMuMoE", "highrank-linear"])
def test_a_partner_is_matched_to_a_hierarchy(title: str, levels: tuple[int, ...]) -> None:
    experts = "x".join(map(str, levels))
    head = f"CPMuMoE-r40-e{experts}"
    wanted = parameters("cp", levels, 40)
    found = matched_spec(title, head, 23, 11)
    assert title == "highrank-linear" or found.endswith(f"-e{experts}")

    def size(spec: str) -> int:
        return sum(parameter.numel() for parameter in build_head(spec, 23, 11).layer.parameters())

    rank = int(found.removeprefix(f"{title}-r").split("-")[0])
    own, *others = (
        abs(size(found.replace(f"-r{rank}", f"-r{near}")) - wanted) for near in (rank, rank + 1, max(1, rank - 1))
    )
    assert own <= min(others)
    assert own < 0.15 * wanted


def test_counts_of_several_levels_are_the_layers() -> None:
    for factorization, levels in itertools.product(("cp", "tucker", "tt", "tr"), LEVELS):
        assert count_parameters(factorization, 23, 11, levels, 7) == parameters(factorization, levels, 7)
