"""The runs behind an item: one head on one data set with one seed each, trained by the one loop and analyzed.

A run is identified by its settings alone, so items that need the same run share it: Table 3 is a part of Table 6, and
Table 6 of Figure 13. A finished run is never trained again, and one that was stopped resumes from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mumoe import UserError
from mumoe.training import TrainConfig
from mumoe.training.config import from_mapping, parse_options
from reproduction.recipe import Recipe

__all__ = ["ABOUT_DATA", "Cell", "all_cells", "cells_of", "chosen_settings", "read_records"]

ABOUT_DATA = ("seeds", "train_images", "test_images", "classes", "feature_width")
"""Keys of a recipe's data set that are not settings of a run."""

ELSEWHERE: Mapping[str, Any] = {
    "root": "",
    "cache_dir": "",
    "workers": 0,
    "out": "",
    "download": False,
    "log_every": 10,
    "track": (),
    "project": "mumoe",
    "run_name": "",
    "checkpoint_every": 0,
    "keep": 2,
}
"""Settings that say where and how a run is executed, not what it is."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        data: The recipe's name of the data set.
        config: All settings, for one seed.
    """

    data: str
    config: TrainConfig

    @property
    def key(self) -> str:
        """Name of its folder: readable, and different for other settings.

        Settings at their defaults are left out, so that a new kind of setting renames nothing.
        """
        plain = self.config.replace(**ELSEWHERE)
        told = {item.name: getattr(plain, item.name) for item in dataclasses.fields(TrainConfig)}
        own = {
            item.name: told[item.name] for item in dataclasses.fields(TrainConfig) if told[item.name] != item.default
        }
        words = [self.data, self.config.backbone, self.config.head, f"seed{self.config.seed}"]
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:10]
        return re.sub(r"[^\w.-]+", "_", "-".join([*words, digest]))

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What a setting is chosen for: all but seed, learning rate and weight decay."""
        return self.data, self.config.backbone, self.config.head, self.config.gate

    def facts(self) -> dict[str, Any]:
        """The facts of the run in a record."""
        config = self.config
        names = ("backbone", "head", "gate", "position", "seed", "lr", "weight_decay")
        return {"key": self.key, "data": self.data, **{name: getattr(config, name) for name in names}}


def specs(recipe: Recipe) -> list[str]:
    """The recipe's heads in full, each number of experts in its turn."""
    found = []
    for head in recipe.heads:
        grows = "MuMoE" in head and "-e" not in head
        found += [f"{head}-e{n}" for n in recipe.experts] if grows else [head]
    return list(dict.fromkeys(found))


def all_cells(recipe: Recipe, changes: Sequence[str] = ()) -> list[Cell]:
    """Every run that a recipe may need, seed after seed; where settings are chosen, every candidate.

    Args:
        recipe: The recipe.
        changes: Settings as KEY=VALUE over all others.

    Raises:
        UserError: If a setting is wrong.
    """
    who = f"{recipe.scale}/{recipe.item.name}.toml"
    cells = []
    for backbone in recipe.backbones:
        for name, table in recipe.data.items():
            own = {key: value for key, value in table.items() if key not in ABOUT_DATA}
            shared = {**recipe.settings, **own, "backbone": backbone, "position": recipe.position}
            base = from_mapping({"preset": "plain", **shared, **parse_options(changes)}, who)
            for seed in range(int(table.get("seeds", recipe.seeds))):
                cells += [Cell(name, config) for config in _configs(recipe, base, seed)]
    if not cells:
        raise UserError(f"{who}: expected runs, got none. It needs backbones, data and heads.")
    return sorted(cells, key=lambda cell: cell.config.seed)


def _configs(recipe: Recipe, base: TrainConfig, seed: int) -> Iterable[TrainConfig]:
    split = base.split_seed + (seed if base.vary_split else 0)
    at = base.replace(seed=seed, split_seed=split, vary_split=False, seeds=1, against=())
    for head in specs(recipe):
        for gate in recipe.gates if "MuMoE" in head else recipe.gates[:1]:
            for lr in recipe.lr or (base.lr,):
                for decay in recipe.weight_decay or (base.weight_decay,):
                    yield at.replace(head=head, gate=gate, lr=lr, weight_decay=decay)


def cells_of(recipe: Recipe, known: Mapping[str, Mapping[str, Any]], changes: Sequence[str] = ()) -> list[Cell]:
    """The runs that are determined by now: with several settings, later seeds wait for the choice on the first.

    Args:
        recipe: The recipe.
        known: Records by key.
        changes: As in `all_cells`.
    """
    cells = all_cells(recipe, changes)
    if len(recipe.lr) * len(recipe.weight_decay) <= 1:
        return cells
    best = chosen_settings(cells, known)
    return [cell for cell in cells if cell.config.seed == 0 or best.get(cell.group) == _setting(cell.config)]


def chosen_settings(
    cells: Sequence[Cell], known: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str, str, str], tuple[float, float]]:
    """Group -> (learning rate, weight decay) that is best on the first seed's validation split, once all are tried."""
    tried: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.config.seed == 0:
            tried.setdefault(cell.group, []).append(cell)
    best = {}
    for group, candidates in tried.items():
        if all(cell.key in known for cell in candidates):
            winner = max(candidates, key=lambda cell: float(known[cell.key]["accuracy"]["val"]))
            best[group] = _setting(winner.config)
    return best


def _setting(config: TrainConfig) -> tuple[float, float]:
    return config.lr, config.weight_decay


def planned_runs(recipe: Recipe) -> int:
    """How many runs the finished item has."""
    cells = all_cells(recipe)
    settings = max(1, len(recipe.lr)) * max(1, len(recipe.weight_decay))
    first = sum(cell.config.seed == 0 for cell in cells)
    return first + (len(cells) - first) // settings


def read_records(work: Path, cells: Iterable[Cell], analysis: str, split: str) -> dict[str, dict[str, Any]]:
    """Records, by key, of the runs that are finished and have the requested analysis."""
    from mumoe.files import read_json

    found = {}
    for cell in cells:
        paths = [work / cell.key / "cell.json", work / cell.key / f"{analysis}-{split}.json"]
        if not all(path.is_file() for path in (paths if analysis != "none" else paths[:1])):
            continue
        record = {**cell.facts(), **read_json(paths[0], "reproduction")}
        if analysis != "none":
            record["experts"] = read_json(paths[1], "reproduction")
        found[cell.key] = record
    return found


def shown(cells: Sequence[Cell], records: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that a page is drawn from: of the chosen settings alone, in the order of the cells."""
    several = len({(cell.group, cell.config.seed) for cell in cells}) < len(cells)
    best = chosen_settings(cells, records) if several else {}
    kept = [cell for cell in cells if not several or best.get(cell.group) == _setting(cell.config)]
    return [records[cell.key] for cell in kept if cell.key in records]


def replaced(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with another number of seeds or other backbones."""
    data = recipe.data
    if changes.get("seeds"):
        data = {name: {**table, "seeds": changes["seeds"]} for name, table in data.items()}
    return dataclasses.replace(recipe, data=data, **{key: value for key, value in changes.items() if value})
