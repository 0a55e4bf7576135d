"""Items that need no training: parameter columns by the layers themselves, FLOPs by torch's counter, two drawings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mumoe import MuMoE
from mumoe.costs import count_flops, count_parameters
from mumoe.specs import parse_spec
from reproduction.recipe import Recipe, Sizes, printed
from reproduction.sheets import Sheet, count_beside

__all__ = [
    "CLASSES",
    "Measured",
    "crossing",
    "head_parameters",
    "hierarchy_columns",
    "measure_forward",
    "mixer_parameters",
    "parameter_columns",
    "parameter_curves",
    "table_1",
]

CLASSES: Mapping[str, int] = {
    "CIFAR100": 100,
    "Caltech256": 257,
    "Caltech101": 102,
    "Food101": 101,
    "OxfordIIITPet": 37,
    "CelebA": 40,
    "ImageNET1k": 1000,
}
"""Outputs of the final layer by the paper's name of the data set; its parameter counts pin them down."""

HIGHRANK = {768: 1024, 384: 512}
"""Rank of the paper's high-rank linear layer by width of the features, which its parameter counts pin down."""


def head_parameters(spec: str, in_features: int, classes: int) -> int:
    """Learnable parameters of a head by its specification, gate included."""
    if spec == "linear":
        return count_parameters("linear", in_features, classes)
    if spec.startswith("highrank-linear"):
        rank = int(spec.rpartition("-r")[2]) if "-r" in spec else HIGHRANK[in_features]
        return count_parameters("highrank-linear", in_features, classes, rank=rank)
    with torch.device("meta"):
        layer = MuMoE.from_spec(spec, in_features, classes)
    return sum(parameter.numel() for parameter in layer.parameters())


def parameter_columns(place: str) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """The right half of Tables 3, 6 and 7: rows of text, and every count of ours with the printed one."""
    table = printed(place)
    rows, numbers = [], []
    for head, row in table["rows"].items():
        cells = [head]
        for name, theirs in zip(table["data"], row["parameters"], strict=True):
            ours = head_parameters(head, table["features"], CLASSES[name])
            cells.append(count_beside(ours, theirs))
            numbers.append({"head": head, "data": name, "ours": ours, "printed": theirs})
        rows.append(cells)
    return rows, numbers


def hierarchy_columns(kind: str) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """The parameter columns of one part of Table 4: as built, with one level, and as a regular mixture."""
    table = printed("table-4")
    sizes = (table["features"], table["classes"])
    rows, numbers = [], []
    for row in table["parts"][kind]:
        levels = "x".join(map(str, row["levels"]))
        ours = {
            "parameters": head_parameters(f"{kind}-e{levels}", *sizes),
            "one_level": head_parameters(f"{kind}-e{row['experts']}", *sizes),
            "regular_moe": count_parameters("dense", *sizes, row["experts"], gate=False),
        }
        rows.append([levels, f"{row['experts']:,}", *(count_beside(n, row[key]) for key, n in ours.items())])
        numbers += [{"levels": levels, "count": key, "ours": n, "printed": row[key]} for key, n in ours.items()]
    return rows, numbers


def fairness_columns() -> tuple[list[list[str]], list[dict[str, Any]]]:
    """The last column of Table 8."""
    table = printed("table-8")
    rows, numbers = [], []
    for head, methods in table["experiments"]["old-females-age"].items():
        ours, theirs = head_parameters(head, table["features"], table["classes"]), methods["+ experts"]["parameters"]
        rows.append([head, count_beside(ours, theirs)])
        numbers.append({"head": head, "ours": ours, "printed": theirs})
    return rows, numbers


# FLOPs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """The multiply-adds of a forward of one row (half of what torch's counter counts), gate left out.

    Attributes:
        head: Specification.
        parameters: Learnable parameters without gate and bias.
        forward: Counted while the factorized forward ran.
        formula: By `mumoe.costs`.
        dense: Counted while the dense layer of as many experts ran.
        forming: Counted while the dense weight was formed from the factors, once for any number of rows.
    """

    head: str
    parameters: int
    forward: int
    formula: int
    dense: int
    forming: int


def measure_forward(spec: str, in_features: int, out_features: int, rows: int = 4) -> Measured:
    """Run the factorized forward, the dense one and the forming of the dense weight under torch's FLOP counter.

    What holds the dense weight is on the meta device, which counts without memory.
    """
    parsed = parse_spec(spec)
    experts = parsed["num_experts"]
    sizes = (in_features, out_features, experts)
    with torch.device("meta"), torch.no_grad():
        shapes = MuMoE.from_spec(spec, in_features, out_features, bias=False)
        full = MuMoE(*sizes, "dense", bias=False)
        on_meta = (torch.empty(rows, in_features), [torch.empty(rows, n) for n in experts])
        dense = _counted(lambda: full.contract(*on_meta)) // rows
        forming = _counted(shapes.to_dense)
    forward = dense
    if parsed["factorization"] != "dense":
        part = MuMoE.from_spec(spec, in_features, out_features, bias=False)
        x, a = torch.randn(rows, in_features), [torch.softmax(torch.randn(rows, n), 1) for n in experts]
        with torch.no_grad():
            forward = _counted(lambda: part.contract(x, a)) // rows
    formula = count_flops(parsed["factorization"], *sizes, parsed["rank"], bias=False)
    own = count_parameters(parsed["factorization"], *sizes, parsed["rank"], bias=False, gate=False)
    return Measured(spec, own, forward, formula, dense, forming)


def _counted(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def table_1(recipe: Recipe) -> Sheet:
    """Table 1: parameters and FLOPs of each factorization, counted while it runs."""
    sizes, table = recipe.sizes, printed("table-1")
    assert sizes is not None
    names = {"DenseMuMoE": "dense", "CPMuMoE": "cp", "TuckerMuMoE": "tucker", "TTMuMoE": "tr", "TRMuMoE": "tr"}
    rows, numbers = [], []
    for head in sizes.heads:
        found = measure_forward(f"{head}-e{sizes.experts[0]}", sizes.in_features, sizes.out_features)
        kind = names[head.partition("-")[0]]
        theirs = table["rows"][kind]
        mark = "=" if _as_printed(found.forward) == theirs else f"**≠ {theirs}**"
        rows.append(
            [
                found.head,
                table["parameters"][kind],
                f"{found.parameters:,}",
                table["flops"][kind],
                f"{found.forward:,} {mark}",
                f"1/{found.dense / found.forward:.0f}",
            ]
        )
        numbers.append({**vars(found), "printed": theirs})
    sheet = Sheet("Table 1: parameters and FLOPs of the factorizations", notes=list(recipe.notes))
    sheet.lead.append(
        f"{sizes.in_features} inputs, {sizes.out_features:,} outputs, {sizes.experts[0]} experts. FLOPs are counted by "
        "torch while the forward runs (two for a multiply-add; halved, as the paper counts). = or ≠: what is printed."
    )
    header = ("layer", "# parameters", "counted", "FLOPs (algebraic)", "FLOPs (counted)", "of dense")
    sheet.add("Measured beside printed:", header, rows)
    sheet.numbers["layers"] = numbers
    return sheet


def _as_printed(flops: int) -> str:
    """In millions as Table 1 prints them: whole from 100 on, else one digit, cut off and not rounded."""
    return f"{flops // 10**6}M" if flops >= 10**8 else f"{flops // 10**5 / 10:.1f}M"


# Parameters ----------------------------------------------------------------------------------------------------


def parameter_curves(recipe: Recipe) -> dict[str, list[tuple[int, int]]]:
    """Figure 10: (experts, parameters) of each layer."""
    sizes = recipe.sizes
    assert sizes is not None
    return {
        head: [(n, head_parameters(f"{head}-e{n}", sizes.in_features, sizes.out_features)) for n in sizes.experts]
        for head in sizes.heads
    }


def crossing(one: str, other: str, sizes: Sizes) -> int:
    """The least number of experts from which layer `one` has more parameters than `other`.

    Both counts are linear in the number of experts, so two of them decide.
    """
    (a0, a1), (b0, b1) = (
        [head_parameters(f"{head}-e{n}", sizes.in_features, sizes.out_features) for n in (1, 2)]
        for head in (one, other)
    )
    return 1 + (b0 - a0) // ((a1 - a0) - (b1 - b0)) + 1


def mixer_parameters(classes: int = 1000) -> dict[str, int]:
    """Parameters of Table 5's two models: MLP-Mixer S/16, and with one CP layer in place of each two-layer MLP.

    The printed 18M and 19M (18.5 and 19.7 million, cut off) pin the reading down: 128 experts, rank 3.25 times the
    width of the input, one layer per MLP. Two layers of that rank under one gate would be four times as much.
    """
    depth, width, tokens, hidden, channels, experts, patch = 8, 512, 196, 256, 2048, 128, 16 * 16 * 3
    shared = (patch + 1) * width + (width + 1) * classes + (2 * depth + 1) * 2 * width

    def mlp(size: int, inside: int) -> int:
        return size * inside + inside + inside * size + size

    def cp(inputs: int, outputs: int, rank: int, gate: bool = True) -> int:
        return count_parameters("cp", inputs, outputs, experts, rank, gate=gate)

    def one(size: int) -> int:
        return cp(size, size, 13 * size // 4)

    def two(size: int, inside: int) -> int:
        return cp(size, inside, 13 * size // 4) + cp(inside, size, 13 * size // 4, gate=False)

    return {
        "mlp": shared + depth * (mlp(tokens, hidden) + mlp(width, channels)),
        "cp": shared + depth * (one(tokens) + one(width)),
        "cp, two layers": shared + depth * (two(tokens, hidden) + two(width, channels)),
    }
