"""What an edit's strength trades: accuracy of the target subgroup against accuracy overall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mumoe.editing.choose import Choice
from mumoe.plots.style import plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["trade_off_figure"]

COLORS = ("#3b6fb6", "#d98032", "#4c9a6a", "#8a63a8")
"""Colours of methods, in both figures of edits."""


def trade_off_figure(choices: Mapping[str, Choice], *, title: str = "") -> Figure:
    """Target accuracy against overall accuracy over the strengths of each method; a dot marks the chosen one."""
    figure, axes = plain_axes(5.4, 3.8)
    for i, (name, choice) in enumerate(choices.items()):
        color = COLORS[i % len(COLORS)]
        x = [point.metrics["accuracy"] for point in choice.curve]
        y = [point.metrics["target_accuracy"] for point in choice.curve]
        axes.plot(x, y, color=color, linewidth=1.5, label=name)
        chosen = next(i for i, point in enumerate(choice.curve) if point.strength == choice.strength)
        axes.plot(x[chosen], y[chosen], "o", color=color)
    axes.set_xlabel("overall accuracy (validation)")
    axes.set_ylabel("target subgroup accuracy (validation)")
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False)
    return figure
