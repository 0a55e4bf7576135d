"""Parameters and multiply-adds by formula, and the rank that fits a budget.

One fused multiply-add counts as one operation and the gate is left out of the FLOPs, as the paper does.
PyTorch's FLOP counter counts two for each: our numbers are half of its. A bias costs parameters but, being an
addition, no multiply-add, except in the dense layer, whose biases have to be mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mumoe.calling import checked
from mumoe.errors import UserError, check_levels, check_size, unknown_name
from mumoe.factorizations import FACTORIZATIONS, Factorization, Rank, get_factorization
from mumoe.specs import BASELINES, closest_rank, read_spec

__all__ = [
    "SpecCosts",
    "Widths",
    "count_block",
    "count_flops",
    "count_mlp",
    "count_parameters",
    "rank_for_block",
    "rank_for_budget",
    "spec_costs",
]


@checked
def count_parameters(
    factorization: str,
    in_features: int,
    out_features: int,
    num_experts: int | Sequence[int] = 1,
    rank: Rank | None = None,
    *,
    bias: bool = True,
    gate: bool = True,
) -> int:
    """Learnable parameters of a layer, equal to ``sum(p.numel() for p in layer.parameters())``.

    Args:
        factorization: A factorization, or ``linear``, ``highrank-linear`` or ``sparse-moe``.
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: One number, or one per level; ignored by the linear layers.
        rank: As in `MuMoE`; for ``highrank-linear`` its rank.
        bias: Whether there is a bias.
        gate: Whether to count the gate's projections (in_features * sum(num_experts)).

    Raises:
        UserError: For an unknown name, a size or a rank below 1.
    """
    levels = _sizes(in_features, out_features, num_experts, "count_parameters")
    if factorization == "linear":
        return out_features * (in_features + bias)
    if factorization == "highrank-linear":
        return _linear_rank(rank) * (in_features + out_features) + bias * out_features
    if factorization == "sparse-moe":
        experts = math.prod(levels)
        return experts * out_features * (in_features + bias) + gate * 2 * in_features * experts
    kind = _kind(factorization, "count_parameters")
    ranks = kind.resolve_ranks(rank, levels, "count_parameters")
    shapes = kind.shapes(in_features + bias, out_features, levels, ranks)
    return sum(math.prod(shape) for shape in shapes.values()) + gate * in_features * sum(levels)


@checked
def count_flops(
    factorization: str,
    in_features: int,
    out_features: int,
    num_experts: int | Sequence[int] = 1,
    rank: Rank | None = None,
    *,
    bias: bool = True,
    gate: bool = False,
    k: int = 2,
) -> int:
    """Multiply-adds of one row's forward, half of what ``torch.utils.flop_counter`` counts.

    Args:
        factorization: As in `count_parameters`.
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: As in `count_parameters`.
        rank: As in `count_parameters`.
        bias: Whether there is a bias; it counts in the dense layer alone.
        gate: Whether to count the gate's projections.
        k: Number of experts computed for a row by ``sparse-moe``.

    Raises:
        UserError: As `count_parameters`.
    """
    levels = _sizes(in_features, out_features, num_experts, "count_flops")
    gate_cost = gate * in_features * sum(levels)
    if factorization == "linear":
        return in_features * out_features
    if factorization == "highrank-linear":
        return _linear_rank(rank) * (in_features + out_features)
    if factorization == "sparse-moe":
        return k * in_features * out_features + gate_cost
    kind = _kind(factorization, "count_flops")
    ranks = kind.resolve_ranks(rank, levels, "count_flops")
    return kind.count_flops(in_features, out_features, levels, ranks, bias) + gate_cost


def _sizes(in_features: int, out_features: int, num_experts: int | Sequence[int], who: str) -> tuple[int, ...]:
    check_size(in_features, "in_features", who)
    check_size(out_features, "out_features", who)
    return check_levels(num_experts, who)


def _kind(name: str, who: str) -> type[Factorization]:
    if name not in FACTORIZATIONS:
        raise unknown_name(who, "layer", name, [*FACTORIZATIONS, *BASELINES])
    return get_factorization(name, who)


def _linear_rank(rank: Any) -> int:
    return check_size(rank, "rank", "highrank-linear")


@dataclass(frozen=True)
class SpecCosts:
    """Costs of a layer given by its specification.

    Attributes:
        kind: A factorization, ``linear``, ``highrank-linear`` or ``sparse-moe``.
        num_experts: Experts of each level; empty for the linear layers.
        parameters: Learnable parameters, with biases and gate.
        flops: Multiply-adds of one row.
    """

    kind: str
    num_experts: tuple[int, ...]
    parameters: int
    flops: int


@checked
def spec_costs(spec: str, in_features: int, out_features: int, *, gate: bool = False) -> SpecCosts:
    """Costs of a layer such as ``CPMuMoE-r512-e128``, ``linear``, ``highrank-linear-r64`` or ``sparse-moe-e8-k2``.

    Args:
        spec: The specification.
        in_features: Width of the input.
        out_features: Width of the output.
        gate: Whether the FLOPs count the gate's projections.

    Raises:
        UserError: If the text is no specification.
    """
    found = read_spec(spec)
    sizes = (found.kind, in_features, out_features, found.num_experts or 1, found.rank)
    flops = count_flops(*sizes, k=found.k, gate=gate)
    return SpecCosts(found.kind, found.num_experts, count_parameters(*sizes), flops)


# Ranks ----------------------------------------------------------------------------------------------------


@checked
def rank_for_budget(
    *,
    parameters: int,
    in_features: int,
    out_features: int,
    num_experts: int | Sequence[int] = 1,
    factorization: str = "cp",
    bias: bool = True,
    gate: bool = True,
) -> int:
    """The int rank whose parameter count is closest to a budget.

    Args:
        parameters: The budget.
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: As in `count_parameters`.
        factorization: A factorization that has a rank, or ``highrank-linear``.
        bias: Whether there is a bias.
        gate: Whether the budget covers the gate.

    Raises:
        UserError: If even rank 1 needs more than the budget, or the layer has no rank.
    """
    ranked = ["highrank-linear", *(name for name, kind in FACTORIZATIONS.items() if kind.has_rank())]
    if factorization not in ranked and factorization in (*BASELINES, *FACTORIZATIONS):
        choices = ", ".join(ranked)
        raise UserError(f"rank_for_budget: expected a layer with a rank, got {factorization!r}. Use {choices}.")
    sizes = (factorization, in_features, out_features, num_experts)
    return closest_rank(
        lambda rank: count_parameters(*sizes, rank, bias=bias, gate=gate), parameters, "rank_for_budget"
    )


Widths = Sequence[tuple[int, int]]
"""(in, out) of the layers of a block, the first of which reads what its gate reads."""


@checked
def count_mlp(widths: Widths, *, bias: bool = True) -> int:
    """Parameters of ordinary linear layers of these widths."""
    return sum(count_parameters("linear", *width, bias=bias) for width in widths)


@checked
def count_block(
    factorization: str, widths: Widths, num_experts: int | Sequence[int], rank: Rank | None, *, bias: bool = True
) -> int:
    """Parameters of mixtures of these widths under one gate, the gate included."""
    return sum(
        count_parameters(factorization, *width, num_experts, rank, bias=bias, gate=position == 0)
        for position, width in enumerate(widths)
    )


@checked
def rank_for_block(
    factorization: str,
    widths: Widths,
    num_experts: int | Sequence[int],
    parameters: int | None = None,
    *,
    bias: bool = True,
    who: str = "rank_for_block",
) -> int | None:
    """The one rank of all layers at which a block, gate included, comes closest to a number of parameters.

    Args:
        factorization: As in `MuMoE`.
        widths: Of the layers.
        num_experts: As in `MuMoE`.
        parameters: The budget; None means that of ordinary linear layers of these widths.
        bias: Whether the layers have biases.
        who: What an error begins with.

    Returns:
        None for a factorization without a rank.

    Raises:
        UserError: If rank 1 needs more than the budget.
    """
    if not get_factorization(factorization, who).has_rank():
        return None
    budget = count_mlp(widths, bias=bias) if parameters is None else parameters
    remedy = "Use fewer experts, or give a rank."
    return closest_rank(
        lambda rank: count_block(factorization, widths, num_experts, rank, bias=bias), budget, who, remedy
    )
