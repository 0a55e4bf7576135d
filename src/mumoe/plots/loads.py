"""Figure 12: how many images each expert processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mumoe.analysis.findings import Usage
from mumoe.errors import UserError
from mumoe.plots.style import COLOURS, INK, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["load_figure"]


def load_figure(usages: Sequence[tuple[str, Usage]], *, title: str, note: str = "") -> Figure:
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
        said = (
            f"{name}: {usage.experts_above_threshold} of {usage.experts:,} experts process an image with "
            f"a ≥ {usage.threshold:g};  {usage.dead} dead;  {usage.support_mean:.1f} experts per image"
        )
        panel.set_title(said, fontsize=10, color=INK, loc="left")
    panels[-1].set_xlabel("expert" + (f".  {note}" if note else ""), fontsize=9, color=PALE)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure
