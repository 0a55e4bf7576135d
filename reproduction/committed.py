"""Records of items that earlier studies of this repository measured with the same settings, from `docs/results`.

`heads` (Table 3), `mixer` (Table 5), `specialization` (Figures 3, 6 and 9) and `bias` (Tables 2 and 8, Figures 15 and
16) were made by the recipes that these items are made of; a run of the item from scratch gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mumoe.files import read_json
from reproduction.recipe import Recipe

__all__ = ["STUDIES", "committed_records"]

Records = list[dict[str, Any]]
BIAS = {"planted": "emoji-style-planted", "natural": "emoji-skin-tone-natural"}


def committed_records(recipe: Recipe, results: Path) -> Records:
    """Records of a small item, as far as an earlier study holds them; empty if there is none.

    Args:
        recipe: The recipe.
        results: The folder ``docs/results`` of a checkout.
    """
    read = STUDIES.get(recipe.item.name) if recipe.scale == "small" else None
    return read(recipe, results) if read else []


def _heads(recipe: Recipe, results: Path) -> Records:
    """Of docs/results/heads: the chosen setting of each head, by seed."""
    path = results / "heads" / "image.json"
    if not path.is_file():
        return []
    (data,) = recipe.data
    found = []
    for head, entry in read_json(path, "reproduction")["heads"].items():
        for seed, accuracy in enumerate(entry["test"]):
            facts = {"data": data, "backbone": recipe.backbones[0], "head": head, "seed": seed, "gate": recipe.gates[0]}
            setting = {"lr": entry["lr"], "weight_decay": entry["weight_decay"], "parameters": entry["parameters"]}
            found.append({**facts, **setting, "accuracy": {"test": accuracy}})
    return [record for record in found if record["head"] in recipe.heads]


def _points(recipe: Recipe, results: Path) -> Records:
    """Of docs/results/specialization/plain: the points of the gates that the item shows."""
    path = results / "specialization" / "plain" / "points.json"
    if not path.is_file():
        return []
    gates = {gate.replace("-frozen", ", gate frozen at random (control)") for gate in recipe.gates}
    points = [
        point for point in read_json(path, "reproduction") if point["series"] in {f"CP, {gate}" for gate in gates}
    ]
    return [{"point": point, "seed": point["seed"]} for point in points if point["experts"] in recipe.experts]


def _effects(recipe: Recipe, results: Path) -> Records:
    """Of docs/results/specialization/plain: the first seed's effects, and the other seeds' counts."""
    path = results / "specialization" / "plain" / "figure-6.json"
    if not path.is_file():
        return []
    shown = read_json(path, "reproduction")
    effects = {row["name"]: row["effects"] for row in shown["rows"]}
    found = []
    for entry in _points(recipe, results):
        point = entry["point"]
        head = f"{recipe.heads[0]}-e{point['experts']}"
        part = {**point, "effects": effects.get(head, []) if point["seed"] == 0 else []}
        experts = {"specialization": part, "classes": shown["classes"]}
        (data,) = recipe.data
        found.append({"head": head, "seed": point["seed"], "data": data, "experts": experts})
    return found


def _bias(recipe: Recipe, results: Path) -> Records:
    """Of docs/results/bias: every seed of the CP head."""
    found = []
    for experiment in recipe.experiments:
        path = results / "bias" / f"{BIAS[experiment]}.json"
        if not path.is_file():
            continue
        study = read_json(path, "reproduction")
        for seed in study["seeds"]:
            reports = {name: report for name, report in seed["reports"].items() if "best worst" not in name}
            found.append(
                {
                    "experiment": experiment,
                    "head": study["head"],
                    "seed": seed["seed"],
                    "support": seed["support"],
                    "strengths": {name: value for name, value in seed["strengths"].items() if name in reports},
                    "parameters": {name: value for name, value in study["parameters"].items() if name in reports},
                    "reports": reports,
                    "facts": study["facts"],
                }
            )
    return found


def _mixer(recipe: Recipe, results: Path) -> Records:
    """Of docs/results/mixer: every network and seed."""
    path = results / "mixer" / "results.json"
    if not path.is_file():
        return []
    (data,) = recipe.data
    found = []
    for head, entry in read_json(path, "reproduction")["networks"].items():
        for place, seed in enumerate(entry["seeds"]):
            accuracy = {split: entry[split]["accuracy"][place] for split in ("val", "test")}
            facts = {"data": data, "backbone": recipe.backbones[0], "gate": recipe.gates[0], "head": head, "seed": seed}
            found.append({**facts, "parameters": entry["parameters"], "accuracy": accuracy})
    return [record for record in found if record["head"] in recipe.heads]


STUDIES: Mapping[str, Callable[[Recipe, Path], Records]] = {
    "table-2": _bias,
    "table-3": _heads,
    "table-5": _mixer,
    "table-8": _bias,
    "figure-3": _points,
    "figure-6": _effects,
    "figure-9": _points,
    "figure-15": _bias,
    "figure-16": _bias,
}
"""Item -> what reads its records from an earlier study."""
