"""`python -m reproduction list`: the items of the paper, which of them are done, and what the rest costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from reproduction.recipe import ITEMS, SCALES, Recipe, load_recipe

__all__ = ["listing", "state_of"]


def listing(*folders: Path) -> str:
    """A line for each item and scale: state, hardware, time, what it shows.

    Args:
        folders: Folders of pages, the user's own and those of the repository: the furthest state counts.
    """
    rows = [("item", "scale", "state", "hardware", "time", "what")]
    for name, item in ITEMS.items():
        for scale in ("small",) if item.study == "exact" else SCALES:
            recipe = load_recipe(name, scale)
            state = state_of(recipe, folders)
            rows.append((name, recipe.scale, state, recipe.hardware, _time(recipe.minutes), item.title))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    ]
    return "\n".join(lines) + "\n\nTimes: measured for exact and small, estimated for full (--dry-run says how).\n"


def state_of(recipe: Recipe, folders: Sequence[Path]) -> str:
    """``done``, ``partly (3 of 9 runs)`` or ``not run``: the furthest of the folders."""
    done, planned = 0, 0
    for folder in folders:
        path = folder / recipe.scale / f"{recipe.item.name}.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))["state"]
            found = int(state["done"]), int(state["planned"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if found[0] >= done:
            done, planned = found
    if not done:
        return "not run"
    return "done" if done >= planned else f"partly ({done} of {planned} runs)"


def _time(minutes: float) -> str:
    if minutes < 1:
        return "seconds"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.0f} h"
