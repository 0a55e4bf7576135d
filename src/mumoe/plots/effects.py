"""Figures 5 and 6: what ablating one expert costs each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mumoe.analysis.findings import Effect
from mumoe.analysis.settings import STRONG
from mumoe.errors import UserError
from mumoe.plots.style import COLOURS, INK, PALE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EffectRow", "effects_figure", "strong_effects"]

COLUMNS, BARS = 4, 8
"""Experts drawn of each model, and classes of each expert."""


@dataclass(frozen=True)
class EffectRow:
    """One model of a bar-plot figure: its name and its experts' effects."""

    name: str
    effects: tuple[Effect, ...]


def effects_figure(rows: Sequence[EffectRow], classes: Sequence[str], *, title: str) -> Figure:
    """Figures 5 and 6: which classes lose how much of their right answers when one expert is ablated.

    Each row is a model; its columns are its first strong experts, in numerical order. A bar is d of eq. 5, the
    largest losses first; a bar to the left is a class that gains.

    Raises:
        UserError: If there are no models.
    """
    if not rows:
        raise UserError("effects_figure: expected at least one analyzed model, got none. Analyze a run first.")
    full = 0.2 * BARS + 0.75
    heights = [full if strong_effects(row) else 0.45 for row in rows]
    figure = new_figure(3.1 * COLUMNS, sum(heights) + 0.9)
    figure.set_layout_engine("constrained", h_pad=0.13)
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False, sharex=True, height_ratios=heights)
    drawn = [effect for row in rows for effect in strong_effects(row)[:COLUMNS]]
    gain = min((d for effect in drawn for _, d in _largest(effect)), default=0.0)
    grid[0, 0].set_xlim(max(-1.0, min(0.0, 1.05 * gain)), 1.0)
    for position, (row, panels) in enumerate(zip(rows, grid, strict=True)):
        _draw_row(panels, row, classes, COLOURS[position % len(COLOURS)])
    figure.suptitle(title, fontsize=12, color=INK, x=0.01, ha="left")
    figure.supxlabel("share of the class's right answers lost", fontsize=9, color=PALE)
    return figure


def _draw_row(panels: Sequence[Axes], row: EffectRow, classes: Sequence[str], colour: str) -> None:
    """The first strong experts of one model; a sentence where there are none."""
    strong = strong_effects(row)
    for column, panel in enumerate(panels):
        if column < len(strong):
            _bars(panel, strong[column], classes, colour)
        else:
            panel.axis("off")
    if not strong:
        text = f"{row.name}: no expert costs a class {STRONG:.0%} of its right answers"
        note = panels[0].text(0, 0.5, text, fontsize=9, color=PALE, transform=panels[0].transAxes)
        note.set_in_layout(False)
        return
    heading = panels[0].annotate(
        f"{row.name}   ({len(strong)} strong experts)",
        (0, 1), (0, 19), xycoords="axes fraction", textcoords="offset points",
        fontsize=10, color=colour, fontweight="bold", annotation_clip=False,
    )  # fmt: skip
    heading.set_in_layout(False)


def strong_effects(row: EffectRow) -> tuple[Effect, ...]:
    """The strong effects of a model, by the rule of its analysis, in numerical order of the experts."""
    return tuple(effect for effect in row.effects if effect.strong)


def _largest(effect: Effect) -> list[tuple[int, float]]:
    """The classes that change most, the largest loss first."""
    chosen = sorted(effect.losses, key=lambda loss: -abs(loss[1]))[:BARS]
    return sorted(chosen, key=lambda loss: -loss[1])


def _bars(panel: Axes, effect: Effect, classes: Sequence[str], colour: str) -> None:
    shown = _largest(effect)
    panel.barh(range(len(shown)), [d for _, d in shown], color=colour, height=0.72)
    panel.set_yticks(range(len(shown)), [_short(classes[c]) for c, _ in shown], fontsize=8)
    panel.set_ylim(BARS - 0.4, -0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.axvline(0, color=PALE, linewidth=0.8)
    panel.tick_params(axis="x", labelsize=8, colors=PALE, labelbottom=True)
    panel.set_title(f"expert {effect.unit}   p = {effect.polysemanticity:.2f}", fontsize=9, color=INK, loc="left")


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
