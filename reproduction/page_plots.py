"""Figures 10, 11, 13, 14 and 15, and curves of training; the others are drawn by `mumoe.plots`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mumoe.plots.style import COLOURS, INK, MARKERS, PALE, bare_axes, new_figure, plain_axes
from mumoe.plots.tradeoff import EDIT_COLOURS
from reproduction.exact import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mumoe.editing.subgroup_fairness import FairnessReport

__all__ = ["accuracy_curves", "flops_figure", "parameter_figure", "score_figure"]

Curve = Mapping[int, Sequence[float]]
"""Number of experts -> accuracies, one per seed."""


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    figure = new_figure(width, height)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for panel in axes:
        bare_axes(panel)
    return figure, axes


def parameter_figure(curves: Mapping[str, Sequence[tuple[int, int]]], *, title: str) -> Figure:
    """Figure 10: parameters against experts, both logarithmic."""
    figure, (axes,) = _figure(7.6, 4.8)
    for place, (name, points) in enumerate(curves.items()):
        experts, counts = zip(*points, strict=True)
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.plot(experts, counts, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("experts", color=PALE)
    axes.set_ylabel("parameters", color=PALE)
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def flops_figure(measured: Sequence[Measured], *, title: str) -> Figure:
    """Figure 11: multiply-adds of one row, naive and factorized, logarithmic."""
    figure, (axes,) = _figure(8.4, 4.6)
    kinds = (
        ("naive: dense layer, eq. 1", "#8a8f98", [part.dense for part in measured]),
        ("factorized, eq. 2 to 4", COLOURS[0], [part.forward for part in measured]),
    )
    for place, (name, colour, values) in enumerate(kinds):
        where = [n + (place - 0.5) * 0.38 for n in range(len(measured))]
        axes.bar(where, values, width=0.36, color=colour, label=name)
        for x, value in zip(where, values, strict=True):
            axes.text(x, value * 1.12, _short(value), ha="center", fontsize=9, color=INK)
    axes.set_yscale("log")
    axes.set_ylim(top=3 * max(part.dense for part in measured))
    axes.set_xticks(range(len(measured)), [part.head for part in measured])
    axes.set_ylabel("multiply-adds of one row", color=PALE)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def _short(value: float) -> str:
    return f"{value / 1e6:.0f}M" if value >= 1e8 else f"{value / 1e6:.2f}M"


def accuracy_curves(
    panels: Mapping[str, tuple[Mapping[str, Curve], Mapping[str, Sequence[float]]]], *, title: str, note: str = ""
) -> Figure:
    """Figures 13 and 14: accuracy against experts, a panel per data set.

    Args:
        panels: Data set -> (curve by head, accuracies by baseline, which are drawn as dashed lines).
        title: What is shown.
        note: A line below.
    """
    figure, axes = _figure(max(6.8, 4.1 * len(panels)), 4.8, len(panels))
    for panel, (name, (curves, baselines)) in zip(axes, panels.items(), strict=True):
        for place, (head, curve) in enumerate(curves.items()):
            _curve(panel, head, curve, place, len(curves))
        for place, (head, values) in enumerate(baselines.items()):
            if values:
                style = ("--", ":")[place % 2]
                panel.axhline(100 * statistics.fmean(values), color=PALE, linestyle=style, linewidth=1.4, label=head)
        _expert_axis(panel, curves)
        panel.set_title(name, fontsize=10.5, color=INK, loc="left")
        panel.set_ylabel("test accuracy, %", fontsize=9, color=PALE)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
        title=note or None, title_fontproperties={"size": 8.5},
    )  # fmt: skip
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    return figure


def _curve(panel: Axes, head: str, curve: Curve, place: int, of: int) -> None:
    points = [(n, values) for n, values in sorted(curve.items()) if values]
    if not points:
        return
    shift = 2.0 ** (0.07 * (place - (of - 1) / 2))
    panel.errorbar(
        [n * shift for n, _ in points],
        [100 * statistics.fmean(values) for _, values in points],
        yerr=[100 * statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points],
        color=COLOURS[place % len(COLOURS)],
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        linewidth=1.5,
        capsize=2.5,
        label=head,
    )


def _expert_axis(panel: Axes, curves: Mapping[str, Curve]) -> None:
    experts = sorted({n for curve in curves.values() for n, values in curve.items() if values})
    panel.set_xscale("log", base=2)
    panel.set_xticks(experts, [f"{n:,}" for n in experts], rotation=0 if len(experts) < 8 else 60)
    panel.minorticks_off()
    panel.set_xlabel("experts", fontsize=9, color=PALE)


def score_figure(
    reports: Mapping[str, Mapping[str, Sequence[FairnessReport]]], *, metric: str = "rewriting_score"
) -> Figure:
    """Bars of one metric, methods side by side for each setting: Figure 15. Dots are seeds.

    Args:
        reports: Setting (a model, or how strengths were chosen) to method to its reports, one per seed.
        metric: Name of the metric.
    """
    figure, axes = plain_axes(6.4, 3.6)
    methods = list(dict.fromkeys(method for group in reports.values() for method in group))
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        color = EDIT_COLOURS[i % len(EDIT_COLOURS)]
        for x, group in enumerate(reports.values()):
            values = [report.metrics[metric].value for report in group.get(method, ())]
            if values:
                place = x + (i - (len(methods) - 1) / 2) * width
                label = method if x == 0 else None
                axes.bar(place, statistics.fmean(values), 0.9 * width, color=color, alpha=0.75, label=label)
                axes.plot([place] * len(values), values, "o", color="black", markersize=3, alpha=0.7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(reports)), list(reports))
    axes.set_ylabel("model re-writing score" if metric == "rewriting_score" else metric.replace("_", " "))
    axes.legend(frameon=False)
    return figure
