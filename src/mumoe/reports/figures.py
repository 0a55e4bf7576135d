"""The paper's figures on specialization, as PNG and SVG with the numbers they show beside them in JSON.

Figure 3 (polysemanticity against the number of experts) and Figure 9 (gates compared) never show a mean
alone: each has the number of strong experts and the controls next to it. Figures 5 and 6 show what single
experts do, Figure 12 how many images each processes. All take plain results and know nothing of layers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mumoe.analysis.findings import Effect, Usage
from mumoe.analysis.settings import STRONG
from mumoe.errors import UserError, require
from mumoe.files import write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "EffectRow",
    "Point",
    "bare_axes",
    "effects_figure",
    "load_figure",
    "new_figure",
    "rendered",
    "save_figure",
    "trend_figure",
]

INK, PALE, GRID = "#202124", "#5f6368", "#e3e5e8"
COLOURS = ("#0b6e99", "#d1495b", "#6a994e", "#8e5ea2", "#c98a1b", "#3d5a80")
MARKERS = ("o", "s", "^", "D", "v", "P")


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
        with_effect: Number of experts that change anything.
        control: Whether the series is a control (drawn dashed and grey).
        least_lost: Right answers that a class must lose for an expert to be strong; 1 (any) in older results.
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


@dataclass(frozen=True)
class EffectRow:
    """One model of a bar-plot figure: its name and its experts' effects."""

    name: str
    effects: tuple[Effect, ...]


def save_figure(figure: Figure, path: str | Path, numbers: Any) -> tuple[Path, Path, Path]:
    """Write ``path.png``, ``path.svg`` and ``path.json`` (the numbers shown), each in one step."""
    base = Path(path)
    kinds: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
    for kind, options in kinds.items():
        write_bytes(base.with_name(f"{base.name}.{kind}"), rendered(figure, kind, options))
    write_json(base.with_name(f"{base.name}.json"), numbers)
    png, svg, described = (base.with_name(f"{base.name}.{kind}") for kind in ("png", "svg", "json"))
    return png, svg, described


def rendered(figure: Figure, kind: str, options: dict[str, Any]) -> bytes:
    """A figure as the bytes of a file of this kind; text of an SVG stays text."""
    matplotlib = require("matplotlib", "reports", "figures")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mumoe"}):
        figure.savefig(buffer, format=kind, facecolor="white", **options)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that belongs to no window."""
    require("matplotlib", "reports", "figures")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bare_axes(axes: Axes) -> None:
    """Axes without a box, with pale horizontal lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


# Figures 3 and 9

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
    """Figures 3 and 9: polysemanticity against the number of experts, beside what keeps the mean honest.

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
        color="#8a8f98" if control else COLOURS[position % len(COLOURS)],
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


# Figures 5 and 6


def effects_figure(
    rows: Sequence[EffectRow],
    classes: Sequence[str],
    *,
    title: str,
    note: str = "",
    columns: int = 4,
    bars: int = 8,
) -> Figure:
    """Figures 5 and 6: which classes lose how much of their right answers when one expert is ablated.

    Each row is a model; its columns are its first strong experts, in numerical order. A bar is d of eq. 5, the
    largest losses first; a bar to the left is a class that gains.

    Raises:
        UserError: If there are no models.
    """
    if not rows:
        raise UserError("effects_figure: expected at least one analyzed model, got none. Analyze a run first.")
    full = 0.2 * bars + 0.75
    heights = [full if strong_effects(row) else 0.45 for row in rows]
    figure = new_figure(3.1 * columns, sum(heights) + 0.9)
    figure.set_layout_engine("constrained", h_pad=0.13)
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, height_ratios=heights)
    drawn = [effect for row in rows for effect in strong_effects(row)[:columns]]
    gain = min((d for effect in drawn for _, d in _largest(effect, bars)), default=0.0)
    grid[0, 0].set_xlim(max(-1.0, min(0.0, 1.05 * gain)), 1.0)
    for position, (row, panels) in enumerate(zip(rows, grid, strict=True)):
        chosen = strong_effects(row)[:columns]
        for column, panel in enumerate(panels):
            if column < len(chosen):
                _bars(panel, chosen[column], classes, bars, COLOURS[position % len(COLOURS)])
            else:
                panel.axis("off")
        if not chosen:
            text = f"{row.name}: no expert costs a class {STRONG:.0%} of its right answers"
            said = panels[0].text(0, 0.5, text, fontsize=9, color=PALE, transform=panels[0].transAxes)
            said.set_in_layout(False)
            continue
        heading = panels[0].annotate(
            f"{row.name}   ({len(strong_effects(row))} strong experts)",
            (0, 1), (0, 19), xycoords="axes fraction", textcoords="offset points",
            fontsize=10, color=COLOURS[position % len(COLOURS)], fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        heading.set_in_layout(False)
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    figure.supxlabel("share of the class's right answers lost" + (f".  {note}" if note else ""), fontsize=9, color=PALE)
    return figure


def strong_effects(row: EffectRow) -> tuple[Effect, ...]:
    """The strong effects of a model, by the rule of its analysis, in numerical order of the experts."""
    return tuple(effect for effect in row.effects if effect.strong)


def _largest(effect: Effect, bars: int) -> list[tuple[int, float]]:
    """The classes that change most, the largest loss first."""
    chosen = sorted(effect.losses, key=lambda loss: -abs(loss[1]))[:bars]
    return sorted(chosen, key=lambda loss: -loss[1])


def _bars(panel: Axes, effect: Effect, classes: Sequence[str], bars: int, colour: str) -> None:
    shown = _largest(effect, bars)
    panel.barh(range(len(shown)), [d for _, d in shown], color=colour, height=0.72)
    panel.set_yticks(range(len(shown)), [_short(classes[c]) for c, _ in shown], fontsize=8)
    panel.set_ylim(bars - 0.4, -0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.axvline(0, color=PALE, linewidth=0.8)
    panel.tick_params(axis="x", labelsize=8, colors=PALE, labelbottom=True)
    panel.set_title(f"expert {effect.unit}   p = {effect.polysemanticity:.2f}", fontsize=9, color=INK, loc="left")


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


# Figure 12


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
