"""Dry runs: every part of a recipe in minutes on a laptop, so that a typo does not wait for a rented GPU.

For each data set, backbone and kind of head: the data pipeline on a stand-in of a dozen pictures in the official
layout, the model with random weights at its real size, one optimizer step by the real loop, its evaluation and
checkpoint, and one analysis step. Heads that are not trained here are built at their real size without memory. Then
the estimate of the cost.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mumoe.models.heads import build_head
from mumoe.training.networks import make_mixer
from reproduction.bias_study import bias_cells, do_bias, read_bias
from reproduction.cells import Cell, all_cells, replaced
from reproduction.estimate import WIDTHS, estimate
from reproduction.recipe import Recipe
from reproduction.standins import make_standin
from reproduction.workshop import Workshop, images_of

__all__ = ["dry_run"]

OVERRIDES = ("pretrained=false", "epochs=1", "batch_size=64", "warmup_steps=0", "precision=fp32", "workers=0")


def dry_run(
    recipe: Recipe, *, changes: Sequence[str] = (), backbone: str = "", seen: dict[str, str] | None = None
) -> list[str]:
    """Try every part of a full recipe once; returns what was done, line by line.

    Args:
        recipe: The recipe.
        changes: Settings as KEY=VALUE over the recipe's.
        backbone: Another backbone in place of the recipe's (a tiny one, to be quick).
        seen: What earlier items of the same call have tried, which is skipped here; extended in place.

    Raises:
        UserError: If a setting is wrong.
        JobError: If a step fails.
    """
    seen = {} if seen is None else seen
    lines = []
    real = all_cells(recipe, changes)
    built = _build_all(recipe, real)
    lines.append(f"{len(real):,} runs planned; {built} different heads built at their real size")
    with tempfile.TemporaryDirectory(prefix="mumoe-dry-") as place:
        root, work = Path(place) / "data", Path(place) / "runs"
        overrides = (*changes, *OVERRIDES, f"root={root}")
        if recipe.item.study == "bias":
            lines += _try_bias(_with_backbone(recipe, backbone), work, root, overrides, seen)
        else:
            shop = Workshop(work, recipe.analysis, recipe.split, progress=False)
            tried = all_cells(_with_backbone(recipe, backbone), overrides)
            lines += [_try(cell, shop, root, recipe, seen) for cell in covering(tried, _kinds_seen(recipe, seen))]
    if recipe.device is not None:
        lines.append(estimate(recipe, real).text())
    return lines


def _kinds_seen(recipe: Recipe, seen: Mapping[str, str]) -> set[str]:
    """Keys of cells that an earlier item tried with the same analysis."""
    ending = f" {recipe.item.kind == 'images'} {recipe.analysis} {recipe.split}"
    return {name.removesuffix(ending) for name in seen if name.endswith(ending)}


def _with_backbone(recipe: Recipe, backbone: str) -> Recipe:
    return recipe.replace(backbones=(backbone,)) if backbone else recipe


def _build_all(recipe: Recipe, cells: Iterable[Cell]) -> int:
    """Build every head (or network from scratch) of a recipe on the meta device, at the sizes of its data sets."""
    kinds = {(cell.data, cell.config.backbone, cell.config.head, cell.config.gate): cell.config for cell in cells}
    for (data, backbone, head, gate), config in kinds.items():
        classes = int(recipe.data[data]["classes"])
        options: dict[str, Any] = {"gate": gate.removesuffix("-frozen")} if "MuMoE" in head else {}
        with torch.device("meta"):
            if config.mode == "scratch":
                make_mixer(config, classes)
            else:
                build_head(head, WIDTHS[backbone], classes, position=recipe.position, **options)
    return len(kinds)


def covering(cells: Sequence[Cell], seen: Collection[str] = ()) -> list[Cell]:
    """Few cells in which every data set, backbone, gate, and factorization at its depth occurs.

    Args:
        cells: All of them.
        seen: Keys of cells that are tried already: they come first.
    """
    missing = {mark for cell in cells for mark in _marks(cell)}
    chosen: list[Cell] = [cell for cell in cells if cell.key in seen]
    missing -= {mark for cell in chosen for mark in _marks(cell)}
    while missing:
        best = max(cells, key=lambda cell: len(missing & _marks(cell)))
        chosen.append(best)
        missing -= _marks(best)
    return chosen


def _marks(cell: Cell) -> set[str]:
    config = cell.config
    depth = config.head.rpartition("-e")[2].count("x")
    kind = config.head.partition("-r")[0] + (f" {depth + 1} levels" if "MuMoE" in config.head else "")
    return {f"data {cell.data}", f"backbone {config.backbone}", f"gate {config.gate}", f"head {kind}"}


def _try(cell: Cell, shop: Workshop, root: Path, recipe: Recipe, seen: dict[str, str]) -> str:
    """One optimizer step and the analysis of one cell; its checkpoint, which may take a gigabyte, is deleted."""
    words = f"{cell.data}, {cell.config.backbone}, {cell.config.head}, {cell.config.gate}"
    name = f"{cell.key} {recipe.item.kind == 'images'} {recipe.analysis} {recipe.split}"
    if name in seen:
        return f"{words}: as in {seen[name]}"
    make_standin(cell.config.data, root)
    start = time.monotonic()
    shop.do([cell])
    step = "one step" if shop.analysis == "none" else f"one step, analysis ({shop.analysis}, {shop.split})"
    if recipe.item.kind == "images":
        images_of(shop, cell, shop.work / cell.key / "images", threshold=0.0, **recipe.options)
        step += ", sheet of images"
    shutil.rmtree(shop.work / cell.key)
    seen[name] = recipe.item.name
    return f"{words}: {step}, {time.monotonic() - start:.1f} s"


def _try_bias(recipe: Recipe, work: Path, root: Path, overrides: Sequence[str], seen: dict[str, str]) -> list[str]:
    """One seed of every head and experiment: training with every strategy, edits, and the metrics on the test split."""
    make_standin("celeba", root)
    work.mkdir(parents=True)
    lines = []
    for cell in bias_cells(replaced(recipe, seeds=1), overrides):
        words = f"{cell.experiment}, {cell.head}"
        if cell.key in seen:
            lines.append(f"{words}: as in {seen[cell.key]}")
            continue
        start = time.monotonic()
        do_bias(recipe, [cell], work, progress=False)
        report = read_bias([cell], work)[0]["reports"]["+ experts"]
        score = report["metrics"]["rewriting_score"]["value"]
        done = f"trained, edited, {len(report['subgroups'])} subgroups measured (score {score:+.2f} of random pictures)"
        lines.append(f"{words}: {done}, {time.monotonic() - start:.1f} s")
        seen[cell.key] = recipe.item.name
    return lines
