"""Make an item: run what is missing, then draw its page from what there is.

Pages and their numbers go to OUTPUT/SCALE: ``table-6.md``, ``table-6.json`` and pictures. The JSON holds everything that
the page shows, so that it can be drawn again without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe.analysis.files import as_json, write_bytes, write_json
from mumoe.recipes.paper import exact_pages
from mumoe.recipes.paper.recipe import Recipe
from mumoe.recipes.paper.sheets import Sheet

__all__ = ["Made", "make"]

EXACT: Mapping[str, Callable[[Recipe, Path], Sheet]] = {
    "costs": exact_pages.costs_page,
    "drawing": exact_pages.drawing_page,
    "parameters": exact_pages.parameters_page,
    "flops": exact_pages.flops_page,
}


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        page: The markdown page.
        text: Its content.
        done, planned: Runs that the page shows, and that the recipe asks for.
    """

    page: Path
    text: str
    done: int
    planned: int


def make(recipe: Recipe, output: Path) -> Made:
    """Make an item that needs no training."""
    folder = output / recipe.scale
    return write_page(recipe, EXACT[recipe.item.kind](recipe, folder), folder, {}, 1, 1)


def write_page(
    recipe: Recipe, sheet: Sheet, folder: Path, records: Mapping[str, Any], done: int, planned: int
) -> Made:
    """Write the page and, beside it, its numbers and how far the item is."""
    page, name = folder / f"{recipe.item.name}.md", recipe.item.name
    state = {"done": done, "planned": planned}
    about = {"item": name, "scale": recipe.scale, "state": state, **records, "numbers": sheet.numbers}
    write_json(folder / f"{name}.json", as_json(about))
    text = sheet.render()
    write_bytes(page, text.encode())
    return Made(page, text, done, planned)
