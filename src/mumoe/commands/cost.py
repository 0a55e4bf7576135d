"""`mumoe cost`: Table 1 for any sizes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from mumoe.errors import UserError
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.cost_tables import LayerCost


@dataclass(frozen=True)
class Options:
    """Parameters and multiply-adds of one layer, for every factorization (Table 1 of the paper)."""

    COMMON: ClassVar = {"in_features": "768", "out_features": "1000", "experts": "512", "ranks": "cp=256 tr=4x512x4"}

    in_features: Annotated[int, Argument(("--in-features",))]
    """Width of the input."""
    out_features: Annotated[int, Argument(("--out-features",))]
    """Width of the output."""
    experts: tuple[int, ...]
    """Number of experts, one for each level."""
    ranks: tuple[str, ...] = ()
    """Ranks of factorizations, such as cp=256 or with every bond tr=4x512x4; by default typical ones."""
    bias: bool = False
    """Count a bias per expert (the paper's Table 1 does not)."""
    gate: bool = False
    """Count the gate's projections."""


def run(options: Options) -> None:
    """Print the table."""
    for flag, value in (("--in-features", options.in_features), ("--out-features", options.out_features)):
        if value < 1:
            raise UserError(f"mumoe cost: expected {flag} >= 1, got {value}.")
    if not options.experts or min(options.experts) < 1:
        got = " ".join(map(str, options.experts)) or "none"
        raise UserError(f"mumoe cost: expected --experts >= 1 for each level, got {got}. Give e.g. --experts 64.")
    from mumoe.cost_tables import compare_costs

    sizes = (options.in_features, options.out_features, options.experts)
    found = compare_costs(*sizes, ranks=options.ranks, bias=options.bias, gate=options.gate)
    rows = [("layer", "rank", "parameters", "FLOPs", "of dense"), *map(_cells, found.layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.write("One multiply-add is one FLOP. ")
    sys.stdout.write("The gate is counted.\n" if options.gate else "The gate is left out, as in the paper.\n")


def _cells(cost: LayerCost) -> tuple[str, ...]:
    share = f"1/{cost.dense_flops / cost.flops:.0f}" if cost.flops < cost.dense_flops else "1"
    return (cost.layer, cost.rank, f"{cost.parameters:,}", f"{cost.flops:,}", share)
