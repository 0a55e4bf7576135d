"""Parameters and multiply-adds by formula, and the rank that fits a budget.

One fused multiply-add counts as one operation and the gate is left out of the FLOPs, as the paper does.
PyTorch's FLOP counter counts two for each: our numbers are half of its. A bias costs parameters but, being an
addition, no multiply-add, except in the dense layer, whose biases have to be mixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import FACTORIZATIONS, Factorization, Rank, get_factorization

__all__ = ["SpecCosts", "count_flops", "count_parameters", "rank_for_budget", "spec_costs"]

BASELINES = ("highrank-linear", "linear", "sparse-moe")


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
        UserError: For an unknown name or a rank below 1.
    """
    levels = (num_experts,) if isinstance(num_experts, int) else tuple(num_experts)
    if factorization in BASELINES:
        return _count_baseline(factorization, in_features, out_features, levels, rank, bias, gate)
    kind = _kind(factorization, "count_parameters")
    ranks = kind.resolve_ranks(rank, levels, "count_parameters")
    shapes = kind.shapes(in_features + bias, out_features, levels, ranks)
    return sum(math.prod(shape) for shape in shapes.values()) + gate * in_features * sum(levels)


def _kind(name: str, who: str) -> type[Factorization]:
    if name not in FACTORIZATIONS:
        raise unknown_name(who, "layer", name, [*FACTORIZATIONS, *BASELINES])
    return get_factorization(name, who)


def _count_baseline(
    name: str, inputs: int, outputs: int, levels: Sequence[int], rank: Any, bias: bool, gate: bool
) -> int:
    if name == "linear":
        return outputs * (inputs + bias)
    if name == "highrank-linear":
        return _linear_rank(rank) * (inputs + outputs) + bias * outputs
    return math.prod(levels) * outputs * (inputs + bias) + gate * 2 * inputs * math.prod(levels)


def _linear_rank(rank: Any) -> int:
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"highrank-linear: expected rank >= 1, got {rank!r}. Give a positive whole number.")
    return rank


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
    """
    levels = (num_experts,) if isinstance(num_experts, int) else tuple(num_experts)
    gate_cost = gate * in_features * sum(levels)
    if factorization == "linear":
        return in_features * out_features
    if factorization == "highrank-linear":
        return _linear_rank(rank) * (in_features + out_features)
    if factorization == "sparse-moe":
        return k * in_features * out_features + gate_cost
    kind = _kind(factorization, "count_flops")
    ranks = kind.resolve_ranks(rank, levels, "count_flops")
    return _FLOPS[kind.title](in_features, out_features, levels, ranks, bias) + gate_cost


def _flops_cp(inputs: int, outputs: int, levels: Sequence[int], ranks: Mapping[str, Any], bias: bool) -> int:
    return ranks["rank"] * (inputs + outputs + sum(levels))


def _flops_tucker(inputs: int, outputs: int, levels: Sequence[int], ranks: Mapping[str, Any], bias: bool) -> int:
    r_out, r_in, r_experts = ranks["out"], ranks["in"], ranks["experts"]
    project = r_in * inputs + sum(n * r for n, r in zip(levels, r_experts, strict=True))
    return project + r_out * r_in * math.prod(r_experts) + r_out * r_in + r_out * outputs


def _flops_ring(inputs: int, outputs: int, levels: Sequence[int], ranks: Mapping[str, Any], bias: bool) -> int:
    bonds = [ranks["in-expert"], *ranks["expert-expert"], ranks["expert-out"]]
    experts = sum(n * bonds[e] * bonds[e + 1] for e, n in enumerate(levels))
    chain = sum(bonds[0] * bonds[e] * bonds[e + 1] for e in range(1, len(levels)))
    first, last, main = bonds[0], bonds[-1], ranks["out-in"]
    return main * inputs * first + experts + chain + last * first * main + last * main * outputs


def _flops_dense(inputs: int, outputs: int, levels: Sequence[int], ranks: Mapping[str, Any], bias: bool) -> int:
    return outputs * (inputs + bias) * math.prod(levels)


_FLOPS = {
    "CPMuMoE": _flops_cp,
    "TuckerMuMoE": _flops_tucker,
    "TTMuMoE": _flops_ring,
    "TRMuMoE": _flops_ring,
    "DenseMuMoE": _flops_dense,
}


@dataclass(frozen=True)
class SpecCosts:
    """Costs of a layer given by its specification.

    Attributes:
        kind: A factorization, ``linear``, ``highrank-linear`` or ``sparse-moe``.
        num_experts: Experts of each level; empty for the linear layers.
        parameters: Learnable parameters, with biases and gate.
        flops: Multiply-adds of one row, without the gate.
    """

    kind: str
    num_experts: tuple[int, ...]
    parameters: int
    flops: int


def spec_costs(spec: str, in_features: int, out_features: int) -> SpecCosts:
    """Costs of a layer such as ``CPMuMoE-r512-e128``, ``linear``, ``highrank-linear-r64`` or ``sparse-moe-e8-k2``.

    Raises:
        UserError: If the text is no specification.
    """
    kind, experts, rank, k = _read_spec(spec)
    sizes = (kind, in_features, out_features, experts or 1, rank)
    return SpecCosts(kind, experts, count_parameters(*sizes), count_flops(*sizes, k=k))


def _read_spec(spec: str) -> tuple[str, tuple[int, ...], Any, int]:
    """Kind, experts, rank and experts computed per row."""
    from mumoe.layers import parse_spec

    if spec == "linear":
        return spec, (), None, 2
    if match := re.fullmatch(r"highrank-linear-r(\d+)", spec):
        return "highrank-linear", (), int(match[1]), 2
    if match := re.fullmatch(r"sparse-moe-e(\d+)(?:-k(\d+))?", spec):
        return "sparse-moe", (int(match[1]),), None, int(match[2] or 2)
    found = parse_spec(spec)
    return found["factorization"], found["num_experts"], found["rank"], 2


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
    if factorization in ("dense", "linear", "sparse-moe"):
        raise UserError(
            f"rank_for_budget: expected a layer with a rank, got {factorization!r}. Use cp, tucker, tt, tr."
        )

    def count(rank: int) -> int:
        sizes = (factorization, in_features, out_features, num_experts)
        return count_parameters(*sizes, rank, bias=bias, gate=gate)

    if count(1) > parameters:
        raise UserError(
            f"rank_for_budget: expected a budget of at least {count(1):,} parameters (rank 1), got {parameters:,}. "
            "Raise it or lower num_experts."
        )
    low, high = 1, 2
    while count(high) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    return high if count(high) - parameters < parameters - count(low) else low
