"""`mumoe cost`: Table 1 for any sizes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from mumoe.errors import UserError

if TYPE_CHECKING:
    from mumoe.factorizations import Rank


@dataclass(frozen=True)
class Options:
    """Parameters and multiply-adds of one layer, for every factorization (Table 1 of the paper)."""

    in_features: Annotated[int, tyro.conf.arg(name="in")]
    """Width of the input."""
    out_features: Annotated[int, tyro.conf.arg(name="out")]
    """Width of the output."""
    experts: tuple[int, ...]
    """Number of experts, one for each level."""
    cp_rank: int = 512
    """CP rank."""
    tucker_rank: int = 128
    """Tucker rank, of every mode."""
    ring_rank: int = 512
    """Large bond of TT and TR, between output and input; the others are 4."""
    bias: bool = False
    """Count a bias per expert (the paper's Table 1 does not)."""
    gate: bool = False
    """Count the gate's projections."""


def run(options: Options) -> None:
    """Print the table."""
    for name in ("in_features", "out_features", "cp_rank", "tucker_rank", "ring_rank"):
        if getattr(options, name) < 1:
            flag = "--" + name.removesuffix("_features").replace("_", "-")
            raise UserError(f"mumoe cost: expected {flag} >= 1, got {getattr(options, name)}.")
    if not options.experts or min(options.experts) < 1:
        got = " ".join(map(str, options.experts)) or "none"
        raise UserError(f"mumoe cost: expected --experts >= 1 for each level, got {got}. Give e.g. --experts 64.")
    rows = _rows(options)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        sys.stdout.write("  ".join(cells) + "\n")
    sys.stdout.write(
        "tr*: the large bond between input and experts, as in the paper's Table 1 (its other tables: tr).\n"
    )
    sys.stdout.write("One multiply-add is one FLOP. ")
    sys.stdout.write("The gate is counted.\n" if options.gate else "The gate is left out, as in the paper.\n")


def _rows(options: Options) -> list[tuple[str, ...]]:
    from mumoe import costs

    sizes = (options.in_features, options.out_features, options.experts)
    moved: Rank = {"out-in": 4, "in-expert": options.ring_rank, "expert-out": 4}
    ranks: list[tuple[str, str, Rank | None]] = [
        ("dense", "dense", None),
        ("cp", "cp", options.cp_rank),
        ("tucker", "tucker", options.tucker_rank),
        ("tt", "tt", options.ring_rank),
        ("tr", "tr", options.ring_rank),
        ("tr*", "tr", moved),
        ("linear", "linear", None),
    ]
    dense = costs.count_flops("dense", *sizes, bias=options.bias, gate=options.gate)
    rows: list[tuple[str, ...]] = [("layer", "rank", "parameters", "FLOPs", "of dense")]
    for label, name, rank in ranks:
        parameters = costs.count_parameters(name, *sizes, rank, bias=options.bias, gate=options.gate)
        flops = costs.count_flops(name, *sizes, rank, bias=options.bias, gate=options.gate)
        share = f"1/{dense / flops:.0f}" if flops < dense else "1"
        shown = str(options.ring_rank) if label == "tr*" else str(rank or "-")
        rows.append((label, shown, f"{parameters:,}", f"{flops:,}", share))
    return rows
