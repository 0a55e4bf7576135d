"""Trade-off over an edit's strength: accuracy of the target subgroup against overall accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.plots.charts import NARROW, Chart, save_chart
from mumoe.plots.style import COLOURS, INK, PALE, bare_axes, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mumoe.editing.choose import Choice

__all__ = ["trade_off_chart", "trade_off_figure"]

EDIT_COLOURS = ("#3b6fb6", "#d98032", "#4c9a6a", "#8a63a8")
"""Colours of methods, in both figures of edits."""


def trade_off_figure(choices: Mapping[str, Choice], *, title: str = "") -> Figure:
    """Target accuracy against overall accuracy over the strengths of each method; a dot marks the chosen one."""
    figure, axes = plain_axes(5.4, 3.8)
    for i, (name, choice) in enumerate(choices.items()):
        color = EDIT_COLOURS[i % len(EDIT_COLOURS)]
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


def trade_off_chart(folder: Path, name: str, choices: Mapping[str, Choice]) -> Chart:
    """The trade-off of one file of edits in the report, one line for each method."""
    rows: list[dict[str, Any]] = [
        {"method": method, "strength": point.strength, **point.metrics, "chosen": point.strength == choice.strength}
        for method, choice in choices.items()
        for point in choice.curve
    ]

    def draw(narrow: bool) -> Figure:
        figure = new_figure(NARROW if narrow else 5.6, 3.2)
        panel = figure.subplots()
        bare_axes(panel)
        for method, colour in zip(choices, (COLOURS[0], COLOURS[4]), strict=False):
            mine = [row for row in rows if row["method"] == method]
            panel.plot([row["accuracy"] for row in mine], [row["target_accuracy"] for row in mine], color=colour)
            for row in (row for row in mine if row["chosen"]):
                label = f"{method}, chosen: {row['strength']:+.3g}"
                panel.plot([row["accuracy"]], [row["target_accuracy"]], "o", color=colour, label=label)
        panel.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        panel.set_xlabel("accuracy of all validation images", fontsize=9, color=PALE)
        panel.set_ylabel("accuracy of the target subgroup", fontsize=9, color=PALE)
        return figure

    objective = next(iter(choices.values())).objective
    caption = f"Over the strength, on validation images; chosen by the objective {objective}."
    alt = "Line plot: accuracy of the target subgroup against that of all images, with the chosen strengths."
    return save_chart(
        folder,
        f"trade-off-{name}",
        draw,
        rows,
        caption=caption,
        alt=alt,
        title="What the subgroup gains, and what all images lose",
    )
