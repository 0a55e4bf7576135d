"""Figure 12: how many images each expert processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mumoe.analysis.findings import Usage
from mumoe.errors import UserError
from mumoe.plots.charts import NARROW, WIDE, Chart, save_chart
from mumoe.plots.style import BLUE, COLOURS, INK, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["load_chart", "load_figure"]


def load_figure(usages: Sequence[tuple[str, Usage]], *, title: str) -> Figure:
    """Figure 12: how many images each expert processes with a coefficient of at least a half.

    Raises:
        UserError: If there are no models.
    """
    if not usages:
        raise UserError("load_figure: expected at least one analyzed model, got none. Analyze a run first.")
    figure = new_figure(10.5, 1.9 * len(usages) + 0.9)
    panels = figure.subplots(len(usages), 1, squeeze=False)[:, 0]
    for panel, (name, usage) in zip(panels, usages, strict=True):
        bare_axes(panel)
        load = np.array(usage.load)
        colours = [COLOURS[n % len(COLOURS)] for n in range(len(load))]
        panel.bar(range(len(load)), load, width=max(0.8, min(3.0, len(load) / 170)), color=colours)
        panel.set_xlim(-1, len(load))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.yaxis.get_major_locator().set_params(integer=True)
        panel.set_ylabel("images", fontsize=9, color=PALE)
        summary = (
            f"{name}: {usage.experts_above_threshold} of {usage.experts:,} experts process an image with "
            f"a ≥ {usage.threshold:g};  {usage.dead} dead;  {usage.support_mean:.1f} experts per image"
        )
        panel.set_title(summary, fontsize=10, color=INK, loc="left")
    panels[-1].set_xlabel("expert", fontsize=9, color=PALE)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def load_chart(folder: Path, level: int, usage: Usage, split: str) -> Chart:
    """Figure 12 in the report: how many images each expert of a level processes."""
    rows = [
        {"expert": n, "load": load, "touched": touched, "mean_coefficient": mean}
        for n, (load, touched, mean) in enumerate(zip(usage.load, usage.touched, usage.mean_coefficient, strict=True))
    ]

    def draw(narrow: bool) -> Figure:
        figure = new_figure(NARROW if narrow else WIDE, 2.6)
        panel = figure.subplots()
        bare_axes(panel)
        edges = [n - 0.5 for n in range(len(usage.load) + 1)]
        panel.stairs(usage.load, edges, fill=True, color=BLUE)
        panel.set_xlim(-0.5, len(usage.load) - 0.5)
        panel.locator_params(integer=True)
        panel.set_xlabel("expert (number)", fontsize=9, color=PALE)
        panel.set_ylabel("images", fontsize=9, color=PALE)
        return figure

    caption = (
        f"{split.capitalize()} images that each expert processes with a coefficient of at "
        f"least {usage.threshold:g}. {usage.experts_above_threshold:,} of {usage.experts:,} experts process any, "
        f"{usage.dead:,} are dead; an image uses {usage.support_mean:.1f} experts on average."
    )
    alt = f"Bar plot: number of images for each of {usage.experts} experts, at most {max(usage.load, default=0)}."
    return save_chart(
        folder,
        f"load-{level}",
        draw,
        rows,
        caption=caption,
        alt=alt,
        title="How many images each expert processes",
        paper="Figure 12",
    )
