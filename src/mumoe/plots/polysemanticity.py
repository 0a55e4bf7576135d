"""Polysemanticity of single experts against the largest loss of a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mumoe.plots.charts import NARROW, WIDE, Chart, Rows, save_chart
from mumoe.plots.style import BLUE, GREY, INK, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["polysemanticity_chart"]


def polysemanticity_chart(
    folder: Path, level: int, experts: Rows, *, mean: float | None, control: float | None
) -> Chart | None:
    """p of every expert against its largest loss, with the means of experts and control; None without experts.

    Args:
        folder: Where its files go.
        level: Level of the experts.
        experts: Those with an effect: expert, polysemanticity, low, high, largest_loss, class, strong and load.
        mean: Mean p of the experts.
        control: Mean p of units of the same load made up of random contributions.
    """
    if not experts:
        return None

    def draw(narrow: bool) -> Figure:
        figure = new_figure(NARROW if narrow else WIDE, 3.6 if narrow else 3.2)
        panel = figure.subplots()
        bare_axes(panel)
        _dots(panel, [row for row in experts if not row["strong"]], GREY, "o", "others")
        _dots(panel, [row for row in experts if row["strong"]], BLUE, "s", "strong experts")
        for value, style, name in ((mean, "-", "mean"), (control, "--", "mean of control")):
            if value is not None:
                panel.axhline(value, color=INK, linestyle=style, linewidth=1, label=f"{name} ({value:.3f})")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("largest share of a class's right answers lost", fontsize=9, color=PALE)
        panel.set_ylabel("polysemanticity p", fontsize=9, color=PALE)
        figure.legend(loc="outside lower center", ncols=2 if narrow else 4, frameon=False, fontsize=8, labelcolor=INK)
        return figure

    caption = (
        "Polysemanticity p of every expert whose ablation changes an answer, against the largest loss of a class. "
        "p is 0 where one class loses everything and no other changes; an expert that hardly matters has p near 1. "
        "Control: units of the same load made up of random contributions."
    )
    alt = f"Scatter plot of {len(experts)} experts, {sum(row['strong'] for row in experts)} of them strong."
    return save_chart(
        folder,
        f"polysemanticity-{level}",
        draw,
        experts,
        caption=caption,
        alt=alt,
        title="How pure each expert is, and how much is lost without it",
    )


def _dots(panel: Axes, rows: Rows, colour: str, marker: str, name: str) -> None:
    if rows:
        x = [row["largest_loss"] for row in rows]
        y = [row["polysemanticity"] for row in rows]
        panel.plot(x, y, marker, color=colour, markersize=4, alpha=0.75, label=name, linestyle="none")
