"""Figures 3 and 9: polysemanticity against the number of experts, beside strong experts, accuracy and controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mumoe.errors import UserError
from mumoe.plots.charts import Chart, save_chart
from mumoe.plots.style import COLOURS, GREY, INK, MARKERS, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "summary", "trend_chart", "trend_figure"]


@dataclass(frozen=True)
class Point:
    """One trained and analyzed model of a trend figure.

    Attributes:
        series: The line it belongs to, such as ``CP, entmax15``.
        experts: Number of experts, all levels multiplied.
        seed: Its seed; points that differ only in it become one point with a spread.
        accuracy: Share of right answers before any intervention.
        mean_polysemanticity: Mean p over the experts with effect, None if there are none.
        strong: Number of experts that cost some class at least half of its right answers.
        mean_polysemanticity_strong: Mean p over these, None if there are none.
        with_effect: Number of experts whose ablation changes the accuracy of a class.
        control: Whether the series is a control (drawn dashed and grey).
        least_lost: Right answers that a class must lose for an expert to be strong; 1 (any) in older results.
        strong_images: Distinct images behind the strong experts; None in older results.
        control_polysemanticity, control_strong: Mean p and strong units among units of the same load made up of random
            contributions; None in older results, and of a point that is that control.
    """

    series: str
    experts: int
    seed: int
    accuracy: float
    mean_polysemanticity: float | None
    strong: int
    mean_polysemanticity_strong: float | None
    with_effect: int
    control: bool = False
    least_lost: int = 1
    strong_images: int | None = None
    control_polysemanticity: float | None = None
    control_strong: int | None = None


_Value = Callable[[Point], float | None]
PANELS: tuple[tuple[str, _Value], ...] = (
    ("mean p of experts with effect  (lower: purer)", lambda point: point.mean_polysemanticity),
    ("strong experts  (count)", lambda point: float(point.strong)),
    ("mean p of strong experts", lambda point: point.mean_polysemanticity_strong),
    ("accuracy", lambda point: point.accuracy),
)


def trend_figure(
    points: Sequence[Point], *, title: str, note: str = "", classes: int | None = None, columns: int = 2
) -> Figure:
    """Figures 3 and 9: polysemanticity against the number of experts, beside numbers that put the mean in context.

    Four panels share the horizontal axis: the mean p, how many experts are strong, the mean p of these, and
    the accuracy. Points are means over seeds, bars one standard deviation; controls are grey and dashed.

    Args:
        points: One per trained model.
        title: What is shown.
        note: A line below the panels.
        classes: Number of classes, marked on the axis.
        columns: 2, or 1 for a narrow figure.

    Raises:
        UserError: If there are no points.
    """
    if not points:
        raise UserError("trend_figure: expected at least one analyzed model, got none. Run the sweep first.")
    figure = new_figure(11.5, 7.4) if columns == 2 else new_figure(4.2, 11.5)
    axes = figure.subplots(4 // columns, columns, squeeze=False)
    names = list(dict.fromkeys(point.series for point in points))
    for panel, (label, value) in zip(axes.flat, PANELS, strict=True):
        bare_axes(panel)
        for position, name in enumerate(names):
            _series(panel, [point for point in points if point.series == name], value, position, len(names))
        panel.set_title(label, fontsize=10.5, color=INK, loc="left")
        _expert_axis(panel, points, classes)
    figure.suptitle(title, fontsize=13, color=INK, x=0.01, ha="left")
    handles, labels = axes.flat[1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(names), 2 * columns if columns > 1 else 1),
        frameon=False, fontsize=9.5,
        title=note or None, title_fontproperties={"size": 8.5},
    )  # fmt: skip
    return figure


def summary(points: Iterable[Point], value: _Value) -> list[tuple[int, float, float, int]]:
    """(experts, mean, standard deviation, seeds) by number of experts; points without a value are skipped."""
    by_experts: dict[int, list[float]] = {}
    for point in points:
        number = value(point)
        if number is not None:
            by_experts.setdefault(point.experts, []).append(number)
    return [
        (experts, float(np.mean(some)), float(np.std(some, ddof=1)) if len(some) > 1 else 0.0, len(some))
        for experts, some in sorted(by_experts.items())
    ]


def _series(panel: Axes, points: Sequence[Point], value: _Value, position: int, of: int) -> None:
    rows = summary(points, value)
    if not rows:
        return
    control = points[0].control
    experts, mean, spread, _ = zip(*rows, strict=True)
    shift = 2.0 ** (0.055 * (position - (of - 1) / 2))
    panel.errorbar(
        [n * shift for n in experts],
        mean,
        yerr=spread,
        label=points[0].series,
        color=GREY if control else COLOURS[position % len(COLOURS)],
        marker=MARKERS[position % len(MARKERS)],
        linestyle="--" if control else "-",
        markersize=5,
        linewidth=1.6,
        capsize=2.5,
        elinewidth=1,
    )


def _expert_axis(panel: Axes, points: Sequence[Point], classes: int | None) -> None:
    experts = sorted({point.experts for point in points})
    panel.set_xscale("log", base=2)
    panel.set_xticks(experts, [f"{n:,}" for n in experts])
    panel.minorticks_off()
    highest = float(panel.dataLim.y1)
    panel.set_ylim(0, 1.08 * highest if np.isfinite(highest) and highest > 0 else 1.0)
    panel.set_xlabel("experts", fontsize=9, color=PALE)
    if classes is not None and experts[0] <= classes <= experts[-1]:
        panel.axvline(classes, color=PALE, linewidth=0.9, linestyle=":")
        low, high = panel.get_ylim()
        panel.text(classes * 1.04, low + 0.02 * (high - low), f"{classes} classes", fontsize=7.5, color=PALE)


def trend_chart(folder: Path, points: Sequence[Point], classes: int | None) -> Chart | None:
    """Figure 3 in the report; None below two numbers of experts.

    Args:
        folder: Where its files go.
        points: One per analyzed model.
        classes: Number of classes, marked on the axis; None where the models differ in it.
    """
    if len({point.experts for point in points}) < 2:
        return None

    def draw(narrow: bool) -> Figure:
        title = "" if narrow else "Specialization against the number of experts"
        return trend_figure(points, title=title, classes=classes, columns=1 if narrow else 2)

    caption = (
        "Means over seeds, bars one standard deviation. The mean of p is read beside the number of strong experts and "
        "the control: units of the same load made up of random contributions."
    )
    alt = "Four line plots against the number of experts: mean p, strong experts, mean p of these, accuracy."
    named = {"title": "Are more experts purer?", "paper": "Figure 3"}
    return save_chart(folder, "trend", draw, [vars(point) for point in points], caption=caption, alt=alt, **named)
