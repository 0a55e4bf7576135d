"""Estimates with their intervals as dots, one line for each name and one colour for each series."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from mumoe.plots.style import new_figure
from mumoe.plots.tradeoff import EDIT_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mumoe.editing.subgroup_fairness import Estimate

__all__ = ["dot_figure"]

SPREAD = 0.16
"""Distance between the series of one line, in lines."""


def dot_figure(
    names: Sequence[str],
    series: Mapping[str, Sequence[Estimate]],
    *,
    label: str,
    title: str = "",
    hollow: Collection[int] = (),
) -> Figure:
    """Draw each series beside the names, from top to bottom.

    Args:
        names: One for each line.
        series: Name to its estimates, one for each line.
        label: What is measured.
        title: Heading.
        hollow: Lines whose dots are not filled.

    Raises:
        UserError: If matplotlib is not installed.
    """
    figure = new_figure(7.2, 1.3 + 0.34 * max(1, len(names)))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for place, (name, estimates) in enumerate(series.items()):
        color, shift = EDIT_COLOURS[place % len(EDIT_COLOURS)], SPREAD * (place - (len(series) - 1) / 2)
        for line, found in enumerate(estimates):
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [line + shift] * 2, color=color, linewidth=1.5, alpha=0.6)
            face = "white" if line in hollow else color
            mark = name if line == 0 and len(series) > 1 else None
            axes.plot(found.value, line + shift, "o", color=color, markerfacecolor=face, markersize=6, label=mark)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10, wrap=True)
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure
