"""Curves of one training: loss and accuracy by epoch, a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mumoe.plots.charts import NARROW, WIDE, Chart, save_chart
from mumoe.plots.style import COLOURS, INK, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Steps", "TrainingCurve", "curves_chart", "curves_figure"]

Steps = Sequence[tuple[int, float]]
"""A curve as (step, value), in order."""


@dataclass(frozen=True)
class TrainingCurve:
    """One line of the training log.

    Attributes:
        name: ``loss``, ``lr``, ``val_loss`` or ``val_accuracy``.
        label: What it is, with its unit.
        points: (step, epoch, value), in order.
    """

    name: str
    label: str
    points: tuple[tuple[int, float, float], ...]


Seeds = Sequence[tuple[int, Sequence[TrainingCurve]]]
"""Each seed with its curves."""


def curves_chart(folder: Path, seeds: Seeds) -> Chart | None:
    """Loss and validation accuracy by epoch, one line for each seed; None if no curve has two points."""
    rows = [
        {"seed": seed, "curve": curve.name, "step": step, "epoch": epoch, "value": value}
        for seed, curves in seeds
        for curve in curves
        for step, epoch, value in curve.points
    ]
    groups = [names for names in (("loss", "val_loss"), ("val_accuracy",)) if _drawn(seeds, names)]
    if not groups:
        return None

    def draw(narrow: bool) -> Figure:
        width, height = (NARROW, 2.6 * len(groups)) if narrow else (WIDE, 3.0)
        figure = new_figure(width, height)
        shape = (len(groups), 1) if narrow else (1, len(groups))
        for panel, names in zip(figure.subplots(*shape, squeeze=False).flat, groups, strict=True):
            _curves(panel, seeds, names)
        return figure

    caption = (
        f"Training of {len(seeds)} seed{'s' * (len(seeds) != 1)}: one line for each, dots on the validation split."
    )
    alt = "Line plots by epoch: training loss with validation loss, and validation accuracy."
    return save_chart(folder, "curves", draw, rows, caption=caption, alt=alt)


def _drawn(seeds: Seeds, names: Sequence[str]) -> list[TrainingCurve]:
    """Curves of these names; a group without a line of several points is a number, not a figure."""
    found = [curve for _, curves in seeds for curve in curves if curve.name in names]
    return found if any(len(curve.points) > 1 for curve in found) else []


def _curves(panel: Axes, seeds: Seeds, names: Sequence[str]) -> None:
    bare_axes(panel)
    for position, (seed, curves) in enumerate(seeds):
        colour = COLOURS[position % len(COLOURS)]
        for curve in curves:
            if curve.name not in names:
                continue
            _, epochs, values = zip(*curve.points, strict=True)
            dots = "o-" if curve.name.startswith("val") else "-"
            name = f"seed {seed}" if curve.name == names[0] and len(seeds) <= 6 else None
            panel.plot(epochs, values, dots, color=colour, markersize=4, linewidth=1.4, label=name)
    accuracy = names[0] == "val_accuracy"
    panel.set_title("validation accuracy" if accuracy else "loss", fontsize=10, color=INK, loc="left")
    panel.set_ylabel("share of right answers" if accuracy else "cross-entropy (nats)", fontsize=9, color=PALE)
    panel.set_xlabel("epoch", fontsize=9, color=PALE)
    panel.set_xlim(left=0)
    if len(seeds) > 1 and len(seeds) <= 6:
        panel.legend(frameon=False, fontsize=8, labelcolor=INK)


def curves_figure(curves: Mapping[str, Sequence[Steps]], *, title: str, value: str) -> Figure:
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
