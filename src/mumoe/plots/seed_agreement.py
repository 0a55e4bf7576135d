"""Do experts reappear in other seeds: agreement of every pair of seeds beside random gates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mumoe.plots.charts import NARROW, WIDE, Chart, Rows, save_chart
from mumoe.plots.style import BLUE, GREY, INK, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["AgreementRows", "agreement_chart", "agreement_figure"]

LABELS = {
    "share": "strong experts\nthat reappear\n(share)",
    "same_class": "match strong for\nthe same class\n(share)",
    "similarity": "strong experts\nand their match\n(correlation)",
    "similarity_all": "all experts\nand their match\n(correlation)",
}
"""Measures that are drawn, and what they are."""


class AgreementRows(Protocol):
    """What is drawn of a `mumoe.analysis.stability.Stability`."""

    @property
    def threshold(self) -> float: ...
    def rows(self) -> Rows: ...
    def experts(self) -> Rows: ...


def agreement_figure(found: AgreementRows, *, title: str = "", narrow: bool = False) -> Figure:
    """Every measure of each pair of seeds as a dot, trained beside random gates; similarity of the matched experts.

    Args:
        found: The pairs and their experts.
        title: Heading.
        narrow: Whether the panels stand below each other.
    """
    figure = new_figure(NARROW, 6.4) if narrow else new_figure(WIDE + 1.4, 3.9)
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, width_ratios=(1.5, 1))
    _measures(panels[0], found.rows(), small=narrow)
    _similarities(panels[1], found.experts(), found.threshold)
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _measures(panel: Axes, rows: Rows, *, small: bool) -> None:
    bare_axes(panel)
    for shift, prefix, colour, marker, name in (
        (-0.17, "", BLUE, "o", "trained gates, a dot for each pair of seeds"),
        (0.17, "control_", GREY, "s", "control: random gates"),
    ):
        for place, measure in enumerate(LABELS):
            values = [row[prefix + measure] for row in rows if row[prefix + measure] is not None]
            _strip(panel, place + shift, values, colour, marker, name if place == 0 else None)
    panel.set_xticks(range(len(LABELS)), list(LABELS.values()), fontsize=6.2 if small else 8)
    panel.set_xlim(-0.5, len(LABELS) - 0.5)
    panel.set_ylim(min(0.0, panel.dataLim.y0) - 0.03, 1.03)


def _strip(panel: Axes, place: float, values: Sequence[float], colour: str, marker: str, name: str | None) -> None:
    """Dots side by side in order of the pairs, and their mean as a line."""
    spread = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else np.zeros(len(values))
    panel.plot(place + spread, values, marker, color=colour, markersize=4.5, alpha=0.7, linestyle="none", label=name)
    if values:
        panel.plot([place - 0.15, place + 0.15], [np.mean(values)] * 2, color=INK, linewidth=1.6)


def _similarities(panel: Axes, experts: Rows, threshold: float) -> None:
    bare_axes(panel)
    strong = [row["similarity"] for row in experts if row["lost"]]
    others = [row["similarity"] for row in experts if not row["lost"]]
    bins = np.linspace(min(0.0, *strong, *others, 0.0), 1, 21).tolist()
    panel.hist([strong, others], bins=bins, stacked=True, color=[BLUE, GREY], label=["strong", "other experts"])
    panel.axvline(threshold, color=INK, linestyle="--", linewidth=1, label=f"threshold ({threshold:g})")
    panel.set_xlabel("correlation with the matched expert", fontsize=9, color=PALE)
    panel.set_ylabel("experts of the first seed of each pair", fontsize=9, color=PALE)
    panel.legend(frameon=False, fontsize=8, labelcolor=INK)


def agreement_chart(folder: Path, found: AgreementRows) -> Chart:
    """The figure in the report."""

    def draw(narrow: bool) -> Figure:
        return agreement_figure(found, narrow=narrow)

    caption = (
        "Experts of every pair of seeds, matched one to one by their coefficients on the same images. A strong expert "
        "reappears if its match is strong for the same class and correlates with it by at least the threshold. Lines: "
        "means over pairs. Control: gates of the same shape drawn at random, matched in the same way."
    )
    alt = (
        "Dots for each pair of seeds, trained beside random gates, and a histogram of correlations of matched experts."
    )
    rows, title = [dict(row) for row in found.rows()], "Do the same experts come back with another seed?"
    return save_chart(folder, "stability", draw, rows, caption=caption, alt=alt, title=title)
