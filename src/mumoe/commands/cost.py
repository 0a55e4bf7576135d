"""`mumoe cost`: Table 1 for any sizes."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from mumoe.errors import UserError
from mumoe.parsing import Argument

if TYPE_CHECKING:
    from mumoe.factorizations import Rank


@dataclass(frozen=True)
class Options:
    """Parameters and multiply-adds of one layer, for every factorization (Table 1 of the paper)."""

    COMMON: ClassVar = {
        "in_features": "768",
        "out_features": "1000",
        "experts": "512",
        "ranks": "cp=256 tr=4x512x4",
    }
    """Shown first in help, with an example of each."""

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
    rows = _rows(options)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.write("One multiply-add is one FLOP. ")
    sys.stdout.write("The gate is counted.\n" if options.gate else "The gate is left out, as in the paper.\n")


def _rows(options: Options) -> list[tuple[str, ...]]:
    from mumoe import costs

    sizes = (options.in_features, options.out_features, options.experts)
    counted = {"bias": options.bias, "gate": options.gate}
    dense = costs.count_flops("dense", *sizes, **counted)
    rows: list[tuple[str, ...]] = [("layer", "rank", "parameters", "FLOPs", "of dense")]
    for name, shown, rank in [*_ranks(options), ("linear", "-", None)]:
        parameters, flops = (
            count(name, *sizes, rank, **counted) for count in (costs.count_parameters, costs.count_flops)
        )
        share = f"1/{dense / flops:.0f}" if flops < dense else "1"
        rows.append((name, shown, f"{parameters:,}", f"{flops:,}", share))
    return rows


def _ranks(options: Options) -> list[tuple[str, str, Rank | None]]:
    """Factorization, rank as text, and rank, of every row."""
    from mumoe.factorizations import FACTORIZATIONS, get_factorization

    given: dict[str, list[str]] = {}
    for text in options.ranks:
        name, _, ranks = text.partition("=")
        if re.fullmatch(r"\d+(x\d+)*", ranks) is None:
            raise UserError(f"mumoe cost: expected --ranks as NAME=RANK, got {text!r}. Write cp=256 or tr=4x512x4.")
        get_factorization(name, "mumoe cost")
        given.setdefault(name, []).append(ranks)
    rows: list[tuple[str, str, Rank | None]] = []
    for name, kind in FACTORIZATIONS.items():
        for ranks in given.get(name, [str(kind.typical_rank or "")]):
            values = [int(rank) for rank in ranks.split("x") if rank]
            rows.append((name, ranks or "-", kind.read_ranks(values, options.experts, "mumoe cost")))
    return rows
