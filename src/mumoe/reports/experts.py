"""Experts as they are shown: what `mumoe analyze` wrote into RUN/analysis, by expert and with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from mumoe.analysis.chosen_images import choose_images, image_label
from mumoe.analysis.coefficient_store import CoefficientStore
from mumoe.data.base import ImageData
from mumoe.errors import UserError
from mumoe.files import read_json, recovered
from mumoe.reports.views import (
    ClassLoss,
    CombinationView,
    ExpertView,
    ImageView,
    LevelView,
    Missing,
    Neighbour,
    Specialized,
    UsageView,
)
from mumoe.results import EvalResult

__all__ = ["Analyzed", "read_analysis", "read_experts", "specialized"]

Images = tuple[tuple[ImageView, ...], tuple[ImageView, ...]]
"""Images of one expert: drawn at random, and with the largest coefficients."""


@dataclass(frozen=True)
class Analyzed:
    """The experts of one run.

    Attributes:
        split: Split that was analyzed.
        levels: Its levels; empty without an analysis.
        combinations: Strong combinations of a hierarchy.
        missing: What the analysis lacks.
    """

    split: str = ""
    levels: tuple[LevelView, ...] = ()
    combinations: tuple[CombinationView, ...] = ()
    missing: tuple[Missing, ...] = ()


@dataclass
class _Source:
    """The files of one analysis, and names for what is in them."""

    folder: Path
    content: Mapping[str, Any]
    right: Mapping[str, int]
    command: str
    missing: list[Missing] = field(default_factory=list)

    @property
    def classes(self) -> Sequence[str]:
        return self.content["classes"]

    def losses(self, effect: Mapping[str, Any]) -> tuple[ClassLoss, ...]:
        """Classes that change, with names, intervals and right answers before."""
        intervals = effect.get("loss_intervals") or [None] * len(effect["losses"])
        return tuple(
            ClassLoss(c, self.classes[c], d, _pair(interval), self.right.get(self.classes[c]))
            for (c, d), interval in zip(effect["losses"], intervals, strict=True)
        )


def read_analysis(run: Path) -> Mapping[str, Any] | None:
    """The content of RUN/analysis/analysis.json, or None if the run was not analyzed.

    Raises:
        UserError: If it is damaged.
    """
    path = run / "analysis" / "analysis.json"
    if not path.is_file():
        return None
    content = read_json(path, "gather")
    if not isinstance(content, dict) or "study" not in content:
        raise UserError(f"gather: expected an analysis in {path}, got something else. Run: mumoe analyze {run}")
    return content


def specialized(found: Mapping[str, Any]) -> Specialized:
    """The numbers of a specialization without its single units."""
    values: dict[str, Any] = {item.name: found[item.name] for item in fields(Specialized) if item.name in found}
    for name in ("mean_interval", "strong_interval"):
        values[name] = _pair(values[name])
    return Specialized(**values)


def read_experts(
    run: Path,
    *,
    data: ImageData | None = None,
    most_images: int = 20,
    evaluations: Mapping[str, EvalResult] | None = None,
    has_experts: bool = True,
    has_images: bool = True,
    multi_label: bool = False,
) -> Analyzed:
    """The experts of a run, as far as `mumoe analyze` has measured them.

    Args:
        run: Folder of the run.
        data: Its image set, to choose images of every expert from; without it the few that were drawn are shown.
        most_images: Images of each expert and kind.
        evaluations: The run's evaluations by split, which know how many answers of each class were right.
        has_experts: Whether its head has units to analyze.
        has_images: Whether it was trained on images, not on features computed elsewhere.
        multi_label: Whether its classes are 0/1 targets.

    Raises:
        UserError: If a file of the analysis is damaged.
    """
    command = f"mumoe analyze {run}"
    if not has_experts:
        reason = "The head has neither experts nor neurons that could be ablated."
        return Analyzed(missing=(Missing("analysis", reason, ""),))
    content = read_analysis(run)
    if content is None:
        reason = "The run has not been analyzed: what each expert does is not known."
        return Analyzed(missing=(Missing("analysis", reason, command),))
    if content["split"] != "test":
        command += f" --split {content['split']}"
    right = _right_answers((evaluations or {}).get(content["split"]), multi_label)
    source = _Source(run / "analysis", content, right, command)
    images, neighbours = _images(source, data, most_images) if has_images else [], _neighbours(source)
    if not has_images:
        source.missing.append(
            Missing("images", "The run was trained on features computed elsewhere: it has no images.")
        )
    units = content["study"]["units"]
    singles = [unit for unit in units if unit["units"] != "combinations"]
    levels = tuple(_level(source, n, unit, images, neighbours) for n, unit in enumerate(singles))
    _check_intervals(source, singles)
    return Analyzed(content["split"], levels, _combinations(source, units), tuple(source.missing))


def _right_answers(evaluation: EvalResult | None, multi_label: bool) -> dict[str, int]:
    """Right answers by class, from shares: of the class's images, or for a 0/1 target of all images."""
    if evaluation is None:
        return {}
    counts = {name: evaluation.count if multi_label else count for name, count in evaluation.class_counts.items()}
    return {name: round((evaluation.per_class.get(name) or 0.0) * count) for name, count in counts.items()}


def _level(
    source: _Source,
    level: int,
    unit: Mapping[str, Any],
    images: Sequence[Mapping[int, Images]],
    neighbours: Sequence[Mapping[str, Any]],
) -> LevelView:
    zero = unit["modes"]["zero"]
    effects = {effect["unit"]: effect for effect in zero["effects"]}
    usages = source.content["study"]["usage"]
    usage = usages[level] if level < len(usages) else None
    near = neighbours[level] if level < len(neighbours) else {}
    pictures = images[level] if level < len(images) else {}
    experts = tuple(
        _expert(source, level, n, effects.get(n), usage, near, pictures.get(n, ((), ()))) for n in range(zero["units"])
    )
    return LevelView(
        level=level,
        name=unit["units"],
        usage=None if usage is None else _usage(usage),
        modes={mode: specialized(part) for mode, part in unit["modes"].items()},
        control=specialized(unit["load_control"]),
        experts=experts,
    )


def _usage(found: Mapping[str, Any]) -> UsageView:
    values = {item.name: found[item.name] for item in fields(UsageView)}
    return UsageView(**{**values, "support_quantiles": tuple(values["support_quantiles"])})


def _expert(
    source: _Source,
    level: int,
    n: int,
    effect: Mapping[str, Any] | None,
    usage: Mapping[str, Any] | None,
    near: Mapping[str, Any],
    images: Images,
) -> ExpertView:
    return ExpertView(
        level=level,
        expert=n,
        load=usage["load"][n] if usage else None,
        touched=usage["touched"][n] if usage else None,
        mean_coefficient=usage["mean_coefficient"][n] if usage else None,
        with_effect=effect is not None,
        polysemanticity=effect["polysemanticity"] if effect else None,
        interval=_pair(effect["interval"]) if effect else None,
        strong=bool(effect and effect["strong"]),
        images=int(effect.get("images", 0)) if effect else 0,
        losses=source.losses(effect) if effect else (),
        by_weight=_near(near.get("by_weight"), n),
        by_coefficient=_near(near.get("by_coefficient"), n),
        random=images[0],
        top=images[1],
    )


def _near(table: Sequence[Sequence[Sequence[float]]] | None, n: int) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(int(expert), float(value)) for expert, value in table[n]) if table else ()


def _pair(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (float(interval[0]), float(interval[1]))


def _check_intervals(source: _Source, units: Sequence[Mapping[str, Any]]) -> None:
    effects = [effect for unit in units for effect in unit["modes"]["zero"]["effects"]]
    if any(effect["losses"] and not effect.get("loss_intervals") for effect in effects):
        reason = "The losses of single classes were measured without intervals."
        source.missing.append(Missing("loss intervals", reason, source.command))


def _neighbours(source: _Source) -> list[dict[str, Any]]:
    path = source.folder / "neighbours.json"
    if not path.is_file():
        if source.content["study"]["usage"]:
            reason = "Which experts are alike was not measured."
            source.missing.append(Missing("neighbours", reason, source.command))
        return []
    return list(read_json(path, "gather")["levels"])


# Images --------------------------------------------------------------------------------------------------------


def _images(source: _Source, data: ImageData | None, most: int) -> list[dict[int, Images]]:
    """Images of every expert by level."""
    store = recovered(source.folder / "coefficients")
    if data is not None and most and (store / "index.json").is_file():
        return _chosen(CoefficientStore(store), data, most, int(source.content.get("seed", 0)))
    grid = recovered(source.folder / "images") / "grid.json"
    if not grid.is_file():
        if source.content["study"]["usage"]:
            reason = "No images of the experts are known."
            source.missing.append(Missing("images", reason, source.command))
        return []
    found = read_json(grid, "gather")["shown"]
    if source.content["study"]["usage"][0]["experts_above_threshold"] > len(found) or data is None:
        reason = f"The image set could not be opened: only the {len(found)} experts drawn by the analysis have images."
        source.missing.append(Missing("images", reason, ""))
    return [{entry["expert"]: _drawn(entry, grid.parent, most) for entry in found}]


def _drawn(entry: Mapping[str, Any], folder: Path, most: int) -> Images:
    random, top = (
        tuple(
            ImageView(item["image"], item["label"], item["coefficient"], str(folder / item["thumbnail"]))
            for item in entry[kind][:most]
        )
        for kind in ("random", "top")
    )
    return random, top


def _chosen(store: CoefficientStore, data: ImageData, most: int, seed: int) -> list[dict[int, Images]]:
    rows = store.images
    levels: list[dict[int, Images]] = []
    for position in range(store.num_levels()):
        found, _ = choose_images(store.level(level=position), each=most, seed=seed)
        pairs = found.items()
        levels.append({n: (_views(random, data, rows), _views(top, data, rows)) for n, (random, top) in pairs})
    return levels


def _views(kept: Any, data: ImageData, rows: Any) -> tuple[ImageView, ...]:
    images = (kept.image if rows is None else np.asarray(rows)[kept.image]).tolist()
    return tuple(
        ImageView(image, image_label(data, image), float(value))
        for image, value in zip(images, kept.value.tolist(), strict=True)
    )


# Hierarchy -----------------------------------------------------------------------------------------------------


def _combinations(source: _Source, units: Sequence[Mapping[str, Any]]) -> tuple[CombinationView, ...]:
    found = source.content["study"]["combinations"]
    if not found:
        return ()
    joint = next(unit for unit in units if unit["units"] == "combinations")
    effects = {effect["unit"]: effect for effect in joint["modes"]["zero"]["effects"]}
    sizes = [unit["modes"]["zero"]["units"] for unit in units if unit["units"] != "combinations"]
    return tuple(_combination(source, entry, effects, sizes) for entry in found)


def _combination(
    source: _Source, entry: Mapping[str, Any], effects: Mapping[int, Mapping[str, Any]], sizes: Sequence[int]
) -> CombinationView:
    effect = effects.get(int(np.ravel_multi_index(tuple(entry["experts"]), tuple(sizes))))
    return CombinationView(
        experts=tuple(entry["experts"]),
        classes_by_level=tuple(_names(source, some) for some in entry["classes_by_level"]),
        classes_of_all=_names(source, entry["classes_of_all"]),
        classes_of_combination=_names(source, entry["classes_of_combination"]),
        agreement=entry["agreement"],
        polysemanticity=effect["polysemanticity"] if effect else None,
        losses=source.losses(effect) if effect else (),
    )


def _names(source: _Source, positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(source.classes[c] for c in positions)
