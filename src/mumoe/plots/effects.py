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


@dataclass(frozen=True)
class EffectRow:
    """One model of a bar-plot figure: its name and its experts' effects."""

    name: str
    effects: tuple[Effect, ...]


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
