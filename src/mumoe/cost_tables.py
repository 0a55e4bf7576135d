"""Table 1 of the paper for any sizes: parameters and multiply-adds of one layer in every factorization."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mumoe.costs import count_flops, count_parameters
from mumoe.errors import UserError
from mumoe.factorizations import FACTORIZATIONS, Rank, get_factorization
from mumoe.records import Record, record

__all__ = ["CostTable", "LayerCost", "compare_costs"]

WHO = "compare_costs"


@record
class LayerCost(Record):
    """One layer.

    Attributes:
        layer: A factorization, or ``linear``.
        rank: Its ranks as text, ``-`` where it has none.
        parameters: Learnable parameters.
        flops: Multiply-adds per row.
        dense_flops: Those of the dense layer of the same experts.
    """

    layer: str
    rank: str
    parameters: int
    flops: int
    dense_flops: int


@record
class CostTable(Record):
    """Layers of one size, one row each."""

    layers: tuple[LayerCost, ...]

    def rows(self) -> list[dict[str, Any]]:
        return [vars(layer) for layer in self.layers]


def compare_costs(
    in_features: int,
    out_features: int,
    num_experts: Sequence[int],
    *,
    ranks: Sequence[str] = (),
    bias: bool = False,
    gate: bool = False,
) -> CostTable:
    """Costs of every factorization, and of a linear layer.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        num_experts: Number of experts, one for each level.
        ranks: Ranks as ``cp=256``, or with every bond ``tr=4x512x4``; by default typical ones.
        bias: Count a bias per expert (the paper's Table 1 does not).
        gate: Count the gate's projections.

    Raises:
        UserError: If a size or a rank is below 1, or a factorization is unknown.
    """
    sizes = (in_features, out_features, tuple(num_experts))
    counted = {"bias": bias, "gate": gate}
    dense = count_flops("dense", *sizes, **counted)
    layers = []
    for name, shown, rank in [*_ranks(ranks, num_experts), ("linear", "-", None)]:
        parameters, flops = (count(name, *sizes, rank, **counted) for count in (count_parameters, count_flops))
        layers.append(LayerCost(name, shown, parameters, flops, dense))
    return CostTable(tuple(layers))


def _ranks(given: Sequence[str], num_experts: Sequence[int]) -> list[tuple[str, str, Rank | None]]:
    """Factorization, rank as text, and rank, of every row."""
    chosen: dict[str, list[str]] = {}
    for text in given:
        name, _, ranks = text.partition("=")
        if re.fullmatch(r"\d+(x\d+)*", ranks) is None:
            raise UserError(f"{WHO}: expected `ranks` as NAME=RANK, got {text!r}. Write cp=256 or tr=4x512x4.")
        get_factorization(name, WHO)
        chosen.setdefault(name, []).append(ranks)
    rows: list[tuple[str, str, Rank | None]] = []
    for name, kind in FACTORIZATIONS.items():
        for ranks in chosen.get(name, [str(kind.typical_rank or "")]):
            values = [int(rank) for rank in ranks.split("x") if rank]
            rows.append((name, ranks or "-", kind.read_ranks(values, num_experts, WHO)))
    return rows
