"""Make an item: do the missing runs, then draw its page from all finished ones.

Pages go to OUTPUT/SCALE: ``table-6.md``, pictures, and ``table-6.json``, which holds the records of all runs shown, so
that the page can be drawn again without running anything. Runs go to WORK and are shared by the items. The page is
drawn again after every seed, so that a stopped job leaves a page of its finished seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe import UserError
from mumoe.files import read_json, write_bytes, write_json
from reproduction import accuracy_pages, bias_pages, cells, exact_pages, expert_pages, mixer_page
from reproduction.committed import committed_records
from reproduction.recipe import Recipe
from reproduction.sheets import Sheet

__all__ = ["Made", "Places", "draw", "make"]

Records = Sequence[Mapping[str, Any]]

EXACT: Mapping[str, Callable[[Recipe, Path], Sheet]] = {
    "costs": exact_pages.costs_page,
    "drawing": exact_pages.drawing_page,
    "parameters": exact_pages.parameters_page,
    "flops": exact_pages.flops_page,
}
TRAINED: Mapping[str, Callable[[Recipe, Records, Path], Sheet]] = {
    "accuracy": accuracy_pages.accuracy_page,
    "curves": accuracy_pages.curves_page,
    "hierarchy": accuracy_pages.hierarchy_page,
    "trend": expert_pages.trend_page,
    "effects": expert_pages.effects_page,
    "load": expert_pages.load_page,
    "images": expert_pages.images_page,
    "fairness": bias_pages.fairness_page,
    "scores": bias_pages.scores_page,
    "subgroups": bias_pages.subgroups_page,
    "mixer": mixer_page.mixer_page,
}


@dataclass(frozen=True)
class Places:
    """Folders.

    Attributes:
        output: Of the pages.
        work: Of the runs.
        results: ``docs/results`` of a checkout, with what earlier studies measured.
    """

    output: Path
    work: Path
    results: Path = Path("docs/results")


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


def make(
    recipe: Recipe, places: Places, *, changes: Sequence[str] = (), run: bool = True, progress: bool = True
) -> Made | None:
    """Make an item; None on a process that is not the main one.

    Args:
        recipe: The recipe.
        places: Folders.
        changes: Settings as KEY=VALUE over the recipe's.
        run: Do missing runs; else draw from existing results: finished runs, the item's own JSON, earlier studies.
        progress: Whether to show progress.

    Raises:
        UserError: If a setting is wrong, or there is nothing to draw from.
        JobError: If a run fails; what is finished is kept.
    """
    folder = places.output / recipe.scale
    if recipe.item.study == "exact":
        return _write(recipe, EXACT[recipe.item.kind](recipe, folder), folder, [], 1, 1)
    find = _bias_records if recipe.item.study == "bias" else _cell_records
    found = find(recipe, places, changes, run, progress)
    if found is None:
        return None
    return draw(recipe, found if run else _best_of(recipe, found, places), folder)


def draw(recipe: Recipe, records: Records, folder: Path) -> Made:
    """The page of these records."""
    if not records:
        raise UserError(
            f"{recipe.item.name}: expected finished runs to draw from, got none. Run it without --render first."
        )
    if recipe.item.study == "bias":
        planned = len(recipe.experiments) * sum(int(table.get("seeds", recipe.seeds)) for table in recipe.data.values())
        planned *= len(recipe.heads)
    else:
        planned = cells.planned_runs(recipe)
        if len(recipe.lr) * len(recipe.weight_decay) > 1:
            planned = len({(cell.group, cell.config.seed) for cell in cells.all_cells(recipe)})
    kept = [_slim(record, recipe) for record in records]
    return _write(recipe, TRAINED[recipe.item.kind](recipe, kept, folder), folder, kept, len(kept), planned)


def _write(recipe: Recipe, sheet: Sheet, folder: Path, records: Records, done: int, planned: int) -> Made:
    """Write the page and, beside it, its records, its numbers and how far the item is."""
    page, name = folder / f"{recipe.item.name}.md", recipe.item.name
    state = {"done": min(done, planned), "planned": planned}
    about = {"item": name, "scale": recipe.scale, "state": state, "records": records, "numbers": sheet.numbers}
    write_json(folder / f"{name}.json", about)
    text = sheet.render()
    write_bytes(page, text.encode())
    return Made(page, text, state["done"], planned)


def _slim(record: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A record reduced to what its page shows."""
    kept = {
        key: value for key, value in record.items() if key not in ("credits", "facts") or recipe.item.kind == "images"
    }
    if recipe.item.study == "bias":
        kept["facts"] = record.get("facts", [])
        names = [name for name in record["reports"] if _is_shown(recipe, name)]
        for key in ("reports", "parameters", "strengths"):
            kept[key] = {name: value for name, value in record[key].items() if name in names}
    experts = kept.get("experts")
    if not isinstance(experts, Mapping):
        return kept
    experts = dict(experts)
    if recipe.item.kind not in ("load", "images"):
        experts.pop("usage", None)
    elif record["seed"] > 0 or recipe.item.kind == "images":
        experts["usage"] = [{**part, "touched": (), "mean_coefficient": ()} for part in experts["usage"]]
    part = experts.get("specialization")
    if part is not None and (recipe.item.kind != "effects" or record["seed"] > 0):
        if recipe.item.kind == "effects" and "concentration" not in kept:
            kept["concentration"] = expert_pages.concentration(record)
        experts["specialization"] = {**part, "effects": ()}
    if record["seed"] > 0 or recipe.item.kind != "effects":
        experts.pop("classes", None)
    return {**kept, "experts": experts}


def _is_shown(recipe: Recipe, method: str) -> bool:
    """Whether a page of the bias study shows a method."""
    edit = method.startswith(("+ experts", "+ blind")) or not method.startswith("+")
    kept = edit or method.startswith(("+ oversample", "+ adversarial"))
    return edit if recipe.item.name in ("table-8", "figure-15", "figure-16") else kept


def _best_of(recipe: Recipe, found: Records, places: Places) -> Records:
    """Of finished runs, the item's own JSON and earlier studies, merged: a run that is in several counts once."""
    path = places.output / recipe.scale / f"{recipe.item.name}.json"
    saved = read_json(path, "reproduction")["records"] if path.is_file() else []
    merged = {_identity(record): record for record in [*committed_records(recipe, places.results), *saved, *found]}
    return [merged[key] for key in sorted(merged)]


def _identity(record: Mapping[str, Any]) -> tuple[str, ...]:
    point = record.get("point")
    if point:
        return (str(point["series"]), f"{point['experts']:06d}", str(record["seed"]))
    names = ("experiment", "data", "backbone", "head", "gate", "seed")
    return tuple(str(record.get(name, "")) for name in names)


# Runs ----------------------------------------------------------------------------------------------------------


def _cell_records(
    recipe: Recipe, places: Places, changes: Sequence[str], run: bool, progress: bool
) -> list[dict[str, Any]] | None:
    from reproduction.workshop import Workshop, is_main

    shop = Workshop(places.work, recipe.analysis, recipe.split, recipe.threshold, progress)
    plan = cells.all_cells(recipe, changes)

    def records() -> dict[str, dict[str, Any]]:
        return cells.read_records(places.work, plan, recipe.analysis, recipe.split)

    if run:
        for seed in sorted({cell.config.seed for cell in plan}):
            ready = [cell for cell in cells.cells_of(recipe, records(), changes) if cell.config.seed == seed]
            shop.do(ready)
            if is_main():
                _after_seed(recipe, plan, records(), places)
    if not is_main():
        return None
    shown = cells.shown(plan, records())
    if recipe.item.kind == "images" and shown:
        _sheets_of_images(recipe, shop, plan, shown, places)
    return shown


def _after_seed(recipe: Recipe, plan: Sequence[cells.Cell], records: Mapping[str, Any], places: Places) -> None:
    """Draw the existing records; skip a page that cannot be drawn yet."""
    shown = cells.shown(plan, records)
    if shown and recipe.item.kind != "images":
        draw(recipe, shown, places.output / recipe.scale)


def _sheets_of_images(
    recipe: Recipe, shop: Any, plan: Sequence[cells.Cell], shown: list[dict[str, Any]], places: Places
) -> None:
    """Write each run's sheet beside the page, and note how many classes its experts' images have."""
    import shutil

    from reproduction.workshop import images_of, purity_of

    by_key = {cell.key: cell for cell in plan}
    for record in shown:
        cell = by_key[record["key"]]
        grid = places.work / cell.key / f"images-{recipe.item.name}"
        number = recipe.item.name.replace("-", " ").capitalize()
        title = f"{number} ({recipe.scale}): {record['head']}, {recipe.split} split"
        images_of(shop, cell, grid, threshold=recipe.threshold, title=title, **recipe.options)
        folder = places.output / recipe.scale
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(grid / "grid.png", folder / f"{recipe.item.name}-e{record['head'].rpartition('-e')[2]}.png")
        record["experts"]["purity"] = purity_of(shop, cell)


def _bias_records(
    recipe: Recipe, places: Places, changes: Sequence[str], run: bool, progress: bool
) -> list[dict[str, Any]] | None:
    from reproduction import bias_study as rewriting
    from reproduction.workshop import is_main

    plan = rewriting.bias_cells(recipe, changes)
    places.work.mkdir(parents=True, exist_ok=True)

    def after(cell: rewriting.BiasCell) -> None:
        draw(recipe, rewriting.read_bias(plan, places.work), places.output / recipe.scale)

    if run:
        rewriting.do_bias(recipe, plan, places.work, progress=progress, after=after)
    return rewriting.read_bias(plan, places.work) if is_main() else None
