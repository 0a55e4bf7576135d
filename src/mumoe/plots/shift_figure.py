"""The same experts on shifted data: accuracy, polysemanticity and strong experts by severity, beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mumoe.plots.charts import NARROW, WIDE, Chart, Rows, save_chart
from mumoe.plots.style import COLOURS, GREY, INK, MARKERS, PALE, bare_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["shift_chart", "shift_figure"]

PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("accuracy", (("accuracy", "-", ""),)),
    ("mean p  (lower: purer)", (("polysemanticity", "-", ""), ("control_polysemanticity", "--", "control"))),
    ("strong experts  (count)", (("strong", "-", ""), ("control_strong", "--", "control"))),
    ("of these, strong before for the same class  (count)", (("kept", "-", ""), ("control_kept", "--", "control"))),
)
"""Panel -> (column, line style, series) of the rows of a `mumoe.analysis.shifting.Shift`."""


def shift_figure(rows: Rows, *, title: str = "", narrow: bool = False) -> Figure:
    """Accuracy, mean p, strong experts and those kept by severity, a colour for each head, mean and deviation of seeds.

    Args:
        rows: Of a `mumoe.analysis.shifting.Shift`.
        title: Heading.
        narrow: Whether the panels stand below each other.
    """
    figure = new_figure(NARROW, 9.4) if narrow else new_figure(WIDE + 1.4, 5.6)
    heads = list(dict.fromkeys(row["head"] for row in rows))
    panels = figure.subplots(4, 1).flat if narrow else figure.subplots(2, 2).flat
    for panel, (label, series) in zip(panels, PANELS, strict=True):
        bare_axes(panel)
        for place, head in enumerate(heads):
            own = [row for row in rows if row["head"] == head]
            for column, style, name in series:
                colour = GREY if name else COLOURS[place % len(COLOURS)]
                text = f"{head}: {name}" if name else head
                _line(panel, own, column, (colour, style, MARKERS[place % len(MARKERS)]), text, place, len(heads))
        panel.set_title(label, fontsize=10, color=INK, loc="left")
        _axis(panel, rows)
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    entries: dict[str, Any] = {}
    for panel in figure.axes:
        entries |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower left", ncols=1 if narrow else 3, frameon=False,
        fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    return figure


def _line(panel: Axes, rows: Rows, column: str, look: tuple[str, str, str], name: str, place: int, of: int) -> None:
    """Means over seeds with their standard deviation, by severity."""
    by_severity: dict[int, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            by_severity.setdefault(row["severity"], []).append(float(row[column]))
    if not by_severity:
        return
    shift = 0.05 * (place - (of - 1) / 2)
    known = sorted(by_severity.items())
    deviations = [float(np.std(some, ddof=1)) if len(some) > 1 else 0.0 for _, some in known]
    colour, style, marker = look
    panel.errorbar(
        [severity + shift for severity, _ in known], [float(np.mean(some)) for _, some in known], yerr=deviations,
        color=colour, linestyle=style, marker=marker, markersize=5, linewidth=1.5, capsize=2.5, label=name,
    )  # fmt: skip


def _axis(panel: Axes, rows: Rows) -> None:
    names: dict[int, str] = {row["severity"]: str(row["on"]) for row in reversed(rows)}
    panel.set_xticks(sorted(names), [_short(names[place]) for place in sorted(names)], fontsize=7.5)
    panel.set_xlim(-0.3, max(names) + 0.3)
    counts = panel.get_title(loc="left") in (PANELS[2][0], PANELS[3][0])
    panel.set_ylim(0, 1.1 * max(float(panel.dataLim.y1), 1.0 if counts else 0.01))
    panel.locator_params(axis="y", integer=counts)
    panel.tick_params(axis="x", colors=PALE)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def shift_chart(folder: Path, name: str, rows: Sequence[Any]) -> Chart:
    """The figure in the report; `name` distinguishes shifts."""

    def draw(narrow: bool) -> Figure:
        return shift_figure(rows, narrow=narrow)

    caption = (
        "The same heads on the images before the shift and after it, means over seeds, bars one standard deviation. "
        "Control: units of the same load made up of random contributions."
    )
    alt = (
        "Four line plots by severity: accuracy, mean p, strong experts, and those that stay strong for the same class."
    )
    numbers, title = [dict(row) for row in rows], "Do experts still answer for their classes on other images?"
    return save_chart(folder, f"shift-{name}", draw, numbers, caption=caption, alt=alt, title=title)
