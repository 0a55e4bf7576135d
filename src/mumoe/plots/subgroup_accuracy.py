"""Figure 16: accuracy of subgroups before and after edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mumoe.errors import UserError
from mumoe.plots.style import plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mumoe.editing.subgroup_fairness import FairnessReport

__all__ = ["subgroup_figure"]


def subgroup_figure(reports: Sequence[FairnessReport], *, title: str = "") -> Figure:
    """Subgroup accuracies before, after, and their difference, the target outlined: Figure 16. Means over seeds.

    Raises:
        UserError: If a report has no accuracies from before.
    """
    first = reports[0]
    if any(group.before is None for report in reports for group in report.subgroups):
        raise UserError("subgroup_figure: expected reports with y_pred_before, got one without. Pass it.")
    labels = list(dict.fromkeys(group.subgroup.label for group in first.subgroups))
    values = list(dict.fromkeys(group.subgroup.sensitive for group in first.subgroups))
    shape = (len(labels), len(values))
    after = _mean([[group.accuracy.value for group in report.subgroups] for report in reports], shape)
    before = _mean([[_before(group) for group in report.subgroups] for report in reports], shape)
    figure, axes = plain_axes(9.0, 2.9, columns=3)
    aim = (labels.index(first.target.label), values.index(first.target.sensitive))
    panels = (("before", before, "Blues", 0, 1), ("after", after, "Blues", 0, 1))
    for axis, (name, table, colors, low, high) in zip(
        axes, (*panels, ("difference", after - before, "RdBu", -1, 1)), strict=True
    ):
        _table(axis, table, colors, low, high, aim, signed=name == "difference")
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(values)), values)
        axis.set_yticks(range(len(labels)), [f"label {label}" for label in labels] if axis is axes[0] else [])
    figure.suptitle(title, fontsize=11)
    return figure


def _table(axis: Any, table: Any, colors: str, low: float, high: float, aim: tuple[int, int], *, signed: bool) -> None:
    from matplotlib.patches import Rectangle

    axis.imshow(table, cmap=colors, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        dark = abs(value) > 0.6
        text = f"{value:+.3f}" if signed else f"{value:.3f}"
        axis.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
    box = (aim[1] - 0.48, aim[0] - 0.47)
    axis.add_patch(Rectangle(box, 0.96, 0.94, fill=False, edgecolor="#2e8b57", linewidth=2.5))


def _mean(rows: Sequence[Sequence[float]], shape: tuple[int, int]) -> Any:
    return np.mean(rows, axis=0).reshape(shape)


def _before(group: Any) -> float:
    return float(group.before.value)
