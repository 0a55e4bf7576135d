"""The settings that an item of the paper is made with: one TOML file per item and scale, all with the same schema.

``full`` is the paper's setting, ``small`` the same code on embedded data; items that need no training are ``exact``
and the same at either scale. A file may start from another one: ``like = "full/table-6"``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mumoe.errors import UserError, unknown_name

__all__ = ["ITEMS", "SCALES", "Device", "Item", "Recipe", "Sizes", "load_recipe", "printed"]

HERE = Path(__file__).parent / "items"
SCALES = ("small", "full")


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper.

    Attributes:
        name: ``table-1`` .. ``figure-16``.
        title: What it shows.
        place: Where in the paper.
        kind: Which function draws it.
        study: Items of a study share their runs; ``exact`` needs none.
    """

    name: str
    title: str
    place: str
    kind: str
    study: str


@dataclass(frozen=True)
class Sizes:
    """Sizes of the layers of an exact item.

    Attributes:
        in_features, out_features: Widths.
        experts: Numbers of experts; of one layer its levels, or a range to go through.
        heads: Layers without their experts, such as ``CPMuMoE-r512``.
    """

    in_features: int
    out_features: int
    experts: tuple[int, ...]
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Device:
    """What a cost is estimated for: time = FLOPs / (tflops * utilization), on each of `count` devices.

    Attributes:
        name: Product name.
        count: How many are used at once.
        tflops: Peak of the precision in 10^12 FLOPs (two per multiply-add) per second, by its maker.
        utilization: Share of the peak that is assumed to be reached.
    """

    name: str
    count: int
    tflops: float
    utilization: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an item is made.

    Attributes:
        item: What is made.
        scale: small, full or exact.
        hardware: What it is meant for.
        minutes: Time on it: measured for small and exact, estimated for full.
        expected: The expected result.
        notes: What the paper leaves open, and what is done here.
        sizes: Of an exact item.
        seeds: Number of seeds; a data set may have its own.
        analysis: ``none``; ``load``: count the images of every expert; ``experts``: also ablate each.
        split: Split that is analyzed.
        threshold: Coefficient from which an image counts as processed by an expert.
        settings: Of `TrainConfig`, for every run.
        data: Column of the table -> settings of `TrainConfig` for that data set, and ``seeds``, ``train_images``,
            ``test_images``, ``classes`` (for the estimate of the cost).
        backbones: Names of backbones.
        heads: Specifications; a MuMoE head without ``-e`` gets each number of `experts`.
        experts: Numbers of experts.
        gates: Gates of the MuMoE heads.
        position: final or penultimate.
        lr, weight_decay: With more than one value each head's own is chosen on the validation split of the first
            seed; empty leaves that of `settings`.
        experiments: Of the bias study: names of `reproduction.bias_sets` or ``planted`` and ``natural``.
        rank_titles: Printed head -> head that stands in its row, where ranks differ from the paper's.
        device: For the estimate of the cost.
        options: Values that only this kind of item takes.
    """

    item: Item
    scale: str
    hardware: str
    minutes: float
    expected: str
    notes: tuple[str, ...] = ()
    sizes: Sizes | None = None
    seeds: int = 3
    analysis: str = "none"
    split: str = "test"
    threshold: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    experts: tuple[int, ...] = ()
    gates: tuple[str, ...] = ("entmax15",)
    position: str = "final"
    lr: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    experiments: tuple[str, ...] = ()
    rank_titles: Mapping[str, str] = field(default_factory=dict)
    device: Device | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some values changed."""
        return dataclasses.replace(self, **changes)


def _items() -> dict[str, Item]:
    table = tomllib.loads((HERE / "items.toml").read_text(encoding="utf-8"))
    return {name: Item(name, **values) for name, values in table.items()}


ITEMS: Mapping[str, Item] = _items()
"""All 8 tables and 16 figures, by name."""


def load_recipe(item: str, scale: str = "small") -> Recipe:
    """The recipe of an item at a scale; an exact one is the same at both.

    Raises:
        UserError: If there is no such item or scale; the nearest name is suggested.
    """
    if item not in ITEMS:
        raise unknown_name("reproduction", "table or figure", item, ITEMS, most=24)
    if scale not in SCALES:
        raise unknown_name("reproduction", "scale", scale, SCALES)
    folder = "exact" if ITEMS[item].study == "exact" else scale
    values = _read(f"{folder}/{item}")
    return _build(ITEMS[item], folder, values)


def _read(name: str) -> dict[str, Any]:
    """The values of a file laid over those of the file it is like; a table given again replaces the other's."""
    path = HERE / f"{name}.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    base = values.pop("like", "")
    return {**_read(base), **values} if base else values


def _build(item: Item, scale: str, values: Mapping[str, Any]) -> Recipe:
    known = {field.name for field in dataclasses.fields(Recipe)} - {"item", "scale"}
    for key in values:
        if key not in known:
            raise unknown_name(f"{scale}/{item.name}.toml", "key", key, known)
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "sizes" in made:
        sizes: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in made["sizes"].items()}
        made["sizes"] = Sizes(**sizes)
    if "device" in made:
        made["device"] = Device(**made["device"])
    if not made.get("hardware") or not made.get("minutes", 0) > 0:
        raise UserError(f"{scale}/{item.name}.toml: expected hardware and minutes, got none. Write them.")
    return Recipe(item=item, scale=scale, **made)


@functools.cache
def printed(place: str) -> Mapping[str, Any]:
    """What the paper prints in a table or section, with its place, from printed.json."""
    numbers: dict[str, Mapping[str, Any]] = json.loads((HERE / "printed.json").read_text(encoding="utf-8"))
    if place not in numbers:
        raise unknown_name("printed", "place", place, numbers, most=24)
    return numbers[place]
