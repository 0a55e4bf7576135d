"""Figures of the report: each as SVG in two widths, for light and dark pages, with its numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mumoe.files import write_bytes, write_json
from mumoe.plots.style import COLOURS, GRID, INK, PALE, bare_axes, new_figure, rendered
from mumoe.plots.trend import Point, trend_figure
from mumoe.reports.views import Curve, ExpertView, LevelView, RunView, SeedView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Chart",
    "csv_text",
    "curves_chart",
    "load_chart",
    "polysemanticity_chart",
    "save_chart",
    "trade_off_chart",
    "trend_chart",
]

WIDE, NARROW = 8.6, 3.7
"""Widths in inches; 96 CSS pixels each."""

BLUE, RED, GREY = COLOURS[0], COLOURS[1], "#8a8f98"
ON_DARK = {
    INK: "#e6ebf0",
    PALE: "#a9b6c2",
    GRID: "#3a4652",
    "#ffffff": "#161c22",
    "#000000": "#e6ebf0",
    BLUE: "#5bb8e0",
    RED: "#ff8a93",
    COLOURS[2]: "#a3c97e",
    COLOURS[3]: "#c79ad8",
    COLOURS[4]: "#e5b04c",
    COLOURS[5]: "#8fb1d9",
    GREY: "#9aa3ad",
}
"""What each colour becomes on a dark page."""

Rows = Sequence[Mapping[str, Any]]
Draw = Callable[[bool], "Figure"]
"""Draws a figure, narrow or wide."""


@dataclass(frozen=True)
class Chart:
    """A figure in a folder.

    Attributes:
        name: Base name of its files.
        caption: What is shown, in words.
        alt: The same for those who do not see it.
    """

    name: str
    caption: str
    alt: str


def save_chart(folder: Path, name: str, draw: Draw, rows: Rows, *, caption: str, alt: str) -> Chart:
    """Write NAME.svg, NAME-dark.svg, NAME-narrow.svg, NAME-narrow-dark.svg, NAME.json and NAME.csv."""
    for form, narrow in (("", False), ("-narrow", True)):
        text = rendered(draw(narrow), "svg", {"metadata": {"Date": None}}).decode()
        write_bytes(folder / f"{name}{form}.svg", text.encode())
        write_bytes(folder / f"{name}{form}-dark.svg", _darkened(text).encode())
    write_json(folder / f"{name}.json", list(rows))
    write_bytes(folder / f"{name}.csv", csv_text(rows).encode())
    return Chart(name, caption, alt)


def csv_text(rows: Rows) -> str:
    """Rows as CSV with a heading; numbers keep all their digits."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _darkened(text: str) -> str:
    for light, dark in ON_DARK.items():
        text = text.replace(light, f"\0{dark[1:]}").replace(light.upper(), f"\0{dark[1:]}")
    return text.replace("\0", "#")


# Training ------------------------------------------------------------------------------------------------------


def curves_chart(folder: Path, seeds: Sequence[SeedView]) -> Chart | None:
    """Loss and learning rate by epoch, one line a seed; None if no curve has two points."""
    rows = [
        {"seed": seed.seed, "curve": curve.name, "step": step, "epoch": epoch, "value": value}
        for seed in seeds
        for curve in seed.curves
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


def _drawn(seeds: Sequence[SeedView], names: Sequence[str]) -> list[Curve]:
    """Curves of these names; a group without a line of several points is a number, not a figure."""
    found = [curve for seed in seeds for curve in seed.curves if curve.name in names]
    return found if any(len(curve.points) > 1 for curve in found) else []


def _curves(panel: Any, seeds: Sequence[SeedView], names: Sequence[str]) -> None:
    bare_axes(panel)
    for position, seed in enumerate(seeds):
        colour = COLOURS[position % len(COLOURS)]
        for curve in seed.curves:
            if curve.name not in names:
                continue
            _, epochs, values = zip(*curve.points, strict=True)
            dots = "o-" if curve.name.startswith("val") else "-"
            name = f"seed {seed.seed}" if curve.name == names[0] and len(seeds) <= 6 else None
            panel.plot(epochs, values, dots, color=colour, markersize=4, linewidth=1.4, label=name)
    accuracy = names[0] == "val_accuracy"
    panel.set_title("validation accuracy" if accuracy else "loss", fontsize=10, color=INK, loc="left")
    panel.set_ylabel("share of right answers" if accuracy else "cross-entropy (nats)", fontsize=9, color=PALE)
    panel.set_xlabel("epoch", fontsize=9, color=PALE)
    panel.set_xlim(left=0)
    if len(seeds) > 1 and len(seeds) <= 6:
        panel.legend(frameon=False, fontsize=8, labelcolor=INK)


# Experts -------------------------------------------------------------------------------------------------------


def load_chart(folder: Path, level: LevelView, split: str) -> Chart | None:
    """Figure 12: how many images each expert processes; None without coefficients."""
    if level.usage is None:
        return None
    usage = level.usage
    rows = [
        {"expert": e.expert, "load": e.load, "touched": e.touched, "mean_coefficient": e.mean_coefficient}
        for e in level.experts
    ]
    loads = [expert.load or 0 for expert in level.experts]

    def draw(narrow: bool) -> Figure:
        figure = new_figure(NARROW if narrow else WIDE, 2.6)
        panel = figure.subplots()
        bare_axes(panel)
        edges = [n - 0.5 for n in range(len(loads) + 1)]
        panel.stairs(loads, edges, fill=True, color=BLUE)
        panel.set_xlim(-0.5, len(loads) - 0.5)
        panel.locator_params(integer=True)
        panel.set_xlabel("expert (number)", fontsize=9, color=PALE)
        panel.set_ylabel("images", fontsize=9, color=PALE)
        return figure

    caption = (
        f"Expert load (the paper's Figure 12): {split} images that each expert processes with a coefficient of at "
        f"least {usage.threshold:g}. {usage.experts_above_threshold:,} of {usage.experts:,} experts process any, "
        f"{usage.dead:,} are dead; an image uses {usage.support_mean:.1f} experts on average."
    )
    alt = f"Bar plot: number of images for each of {usage.experts} experts, at most {max(loads, default=0)}."
    return save_chart(folder, f"load-{level.level}", draw, rows, caption=caption, alt=alt)


def polysemanticity_chart(folder: Path, level: LevelView) -> Chart | None:
    """p of every expert with effect against its largest loss, with the means of experts and control."""
    shown = [expert for expert in level.experts if expert.polysemanticity is not None and expert.losses]
    if not shown:
        return None
    rows = [
        {
            "expert": expert.expert,
            "polysemanticity": expert.polysemanticity,
            "low": expert.interval[0] if expert.interval else None,
            "high": expert.interval[1] if expert.interval else None,
            "largest_loss": expert.worst.loss if expert.worst else 0.0,
            "class": expert.worst.name if expert.worst else None,
            "strong": expert.strong,
            "load": expert.load,
        }
        for expert in shown
    ]

    def draw(narrow: bool) -> Figure:
        figure = new_figure(NARROW if narrow else WIDE, 3.6 if narrow else 3.2)
        panel = figure.subplots()
        bare_axes(panel)
        _dots(panel, [e for e in shown if not e.strong], GREY, "o", "others")
        _dots(panel, [e for e in shown if e.strong], BLUE, "s", "strong experts")
        zero = level.modes["zero"].mean_polysemanticity
        for value, style, name in ((zero, "-", "mean"), (level.control.mean_polysemanticity, "--", "mean of control")):
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
    alt = f"Scatter plot of {len(shown)} experts, {sum(e.strong for e in shown)} of them strong."
    return save_chart(folder, f"polysemanticity-{level.level}", draw, rows, caption=caption, alt=alt)


def _dots(panel: Any, experts: Sequence[ExpertView], colour: str, marker: str, name: str) -> None:
    if experts:
        x = [expert.worst.loss if expert.worst else 0.0 for expert in experts]
        y = [expert.polysemanticity for expert in experts]
        panel.plot(x, y, marker, color=colour, markersize=4, alpha=0.75, label=name, linestyle="none")


# Several runs --------------------------------------------------------------------------------------------------


def trend_chart(folder: Path, views: Sequence[RunView]) -> Chart | None:
    """Figure 3: polysemanticity against the number of experts and its control; None below two numbers."""
    points = [point for view in views for point in _points(view)]
    if len({point.experts for point in points}) < 2:
        return None
    classes = {len(view.facts.classes) for view in views}
    marked = classes.pop() if len(classes) == 1 else None

    def draw(narrow: bool) -> Figure:
        title = "" if narrow else "Specialization against the number of experts"
        return trend_figure(points, title=title, classes=marked, columns=1 if narrow else 2)

    caption = (
        "Specialization against the number of experts (the paper's Figure 3), means over seeds, bars one standard "
        "deviation. The mean of p is read beside the number of strong experts and the control: units of the same load "
        "made up of random contributions."
    )
    alt = "Four line plots against the number of experts: mean p, strong experts, mean p of these, accuracy."
    return save_chart(folder, "trend", draw, [vars(point) for point in points], caption=caption, alt=alt)


def _points(view: RunView) -> list[Point]:
    title, mixture, _ = view.head.spec.partition("MuMoE")
    kind = title if mixture else view.head.kind
    series = f"{kind}, {view.head.gate}" if view.head.gate else kind
    series += f", {len(view.head.experts)} levels" if len(view.head.experts) > 1 else ""
    found = []
    for seed in view.seeds:
        for part, name, control in ((seed.specialized, series, False), (seed.control, f"{series}: same load", True)):
            if part is not None:
                numbers = (part.accuracy, part.mean_polysemanticity, part.strong, part.mean_polysemanticity_strong)
                rest = (part.with_effect, control, part.least_lost)
                found.append(Point(name, part.units, seed.seed, *numbers, *rest))
    return found


# Edits ---------------------------------------------------------------------------------------------------------


def trade_off_chart(folder: Path, name: str, choice: Mapping[str, Any]) -> Chart:
    """Target accuracy against overall accuracy over the strengths tried on validation images."""
    rows = [{"strength": point["strength"], **point["metrics"]} for point in choice["curve"]]
    chosen = next((row for row in rows if row["strength"] == choice["strength"]), None)

    def draw(narrow: bool) -> Figure:
        figure = new_figure(NARROW if narrow else 5.6, 3.2)
        panel = figure.subplots()
        bare_axes(panel)
        panel.plot([row["accuracy"] for row in rows], [row["target_accuracy"] for row in rows], color=BLUE)
        if chosen:
            said = f"chosen: λ = {chosen['strength']:+.3g}"
            panel.plot([chosen["accuracy"]], [chosen["target_accuracy"]], "o", color=RED, label=said)
            panel.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        panel.set_xlabel("accuracy of all validation images", fontsize=9, color=PALE)
        panel.set_ylabel("accuracy of the target subgroup", fontsize=9, color=PALE)
        return figure

    caption = f"Trade-off over the strength λ on validation images; chosen by the objective {choice['objective']}."
    alt = "Line plot: accuracy of the target subgroup against that of all images, with the chosen strength."
    return save_chart(folder, f"trade-off-{name}", draw, rows, caption=caption, alt=alt)
