"""Pages of the items that need no training: Table 1 and Figures 1, 4, 10 and 11."""

from __future__ import annotations

import math
from pathlib import Path

from mumoe.plots.style import save_figure
from reproduction import drawings, exact
from reproduction import page_plots as plots
from reproduction.recipe import Recipe, printed
from reproduction.sheets import Sheet

__all__ = ["costs_page", "drawing_page", "flops_page", "parameters_page"]


def costs_page(recipe: Recipe, folder: Path) -> Sheet:
    """Table 1."""
    return exact.table_1(recipe)


def drawing_page(recipe: Recipe, folder: Path) -> Sheet:
    """Figures 1 and 4."""
    assert recipe.sizes is not None
    steps = drawings.contraction_steps(recipe.sizes)
    levels = len(recipe.sizes.experts)
    number = recipe.item.name.rpartition("-")[2]
    title = f"Figure {number}: the forward pass of {'one level' if levels == 1 else 'two levels'} of experts"
    save_figure(drawings.contraction_figure(steps, title), folder / f"{recipe.item.name}", steps.numbers())
    sheet = Sheet(title, pictures=[f"{recipe.item.name}.png"], notes=list(recipe.notes))
    sheet.lead.append(
        "Every cell is shaded by a number of a real forward of a small dense layer: yellow the weights of the experts, "
        "blue the input and what the experts make of it, red"
        + (" and green" if levels > 1 else "")
        + " the coefficients, purple the output. Experts whose coefficient is 0 leave no trace in the output."
    )
    sheet.numbers = steps.numbers()
    return sheet


def parameters_page(recipe: Recipe, folder: Path) -> Sheet:
    """Figure 10, and the number of experts from which CP needs more parameters than the others."""
    assert recipe.sizes is not None
    curves = exact.parameter_curves(recipe)
    sizes = f"{recipe.sizes.in_features} inputs, {recipe.sizes.out_features:,} outputs"
    title = f"Figure 10: parameters by number of experts ({sizes})"
    save_figure(plots.parameter_figure(curves, title=title), folder / "figure-10", curves)
    sheet = Sheet(title, pictures=["figure-10.png"], notes=list(recipe.notes))
    rows = [[f"{n:,}", *(f"{dict(points)[n]:,}" for points in curves.values())] for n in recipe.sizes.experts]
    sheet.add("Parameters, gate and bias included:", ("experts", *curves), rows)
    cp = next(name for name in curves if name.startswith("CP"))
    for other in (name for name in curves if name.startswith(("Tucker", "TT", "TR"))):
        crossing = exact.crossing(cp, other, recipe.sizes)
        sheet.findings.append(f"{cp} has more parameters than {other} from {crossing:,} experts on.")
    sheet.numbers = {"curves": curves}
    return sheet


def flops_page(recipe: Recipe, folder: Path) -> Sheet:
    """Figure 11, and the additional cost of forming the dense weight."""
    sizes = recipe.sizes
    assert sizes is not None
    found = [
        exact.measure_forward(f"{head}-e{sizes.experts[0]}", sizes.in_features, sizes.out_features)
        for head in sizes.heads
    ]
    title = f"Figure 11: naive against factorized forward ({sizes.in_features} inputs and outputs)"
    save_figure(plots.flops_figure(found, title=title), folder / "figure-11", found)
    sheet = Sheet(title, pictures=["figure-11.png"], notes=list(recipe.notes))
    rows = [
        [
            part.head,
            f"{part.dense:,}",
            f"{part.forward:,}",
            f"{part.dense / part.forward:.0f} times",
            f"{part.forming:,}",
        ]
        for part in found
    ]
    header = ("layer", "naive (counted)", "factorized (counted)", "cheaper by", "forming the dense weight")
    sheet.add("Multiply-adds of one row (the last column: once for a batch), gate left out:", header, rows)
    ratios = [part.dense / part.forward for part in found]
    sheet.findings.append(
        f"The factorized forward is {min(ratios):.0f} to {max(ratios):.0f} times cheaper, "
        f"{math.log10(min(ratios)):.1f} to {math.log10(max(ratios)):.1f} orders of magnitude; the paper "
        f"({printed('figure-11')['place']}) says many."
    )
    sheet.numbers = {"measured": [vars(part) for part in found]}
    return sheet
