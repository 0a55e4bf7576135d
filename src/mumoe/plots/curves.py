"""Curves of training: several networks, several seeds each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mumoe.plots.style import COLOURS, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "curves_figure"]

Curve = Sequence[tuple[int, float]]
"""Pairs of a step and a value, by ascending step."""


def curves_figure(curves: Mapping[str, Sequence[Curve]], *, title: str, value: str) -> Figure:
    """One colour for each network, a thin line for each seed and a thick one for their mean.

    Args:
        curves: Network -> one curve for each seed, all over the same steps.
        title: Title.
        value: What the curves are of, for the axis.
    """
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    for colour, (name, seeds) in zip(COLOURS, curves.items(), strict=False):
        for curve in seeds:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.6, alpha=0.35)
        steps = [step for step, _ in seeds[0]]
        means = [sum(curve[k][1] for curve in seeds) / len(seeds) for k in range(len(steps))]
        axes.plot(steps, means, color=colour, linewidth=1.8, label=name)
    bare_axes(axes)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(value)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title(title, fontsize=11, loc="left")
    return figure
