"""Experts as the pages show them: the study in RUN/analysis, expert by expert, with names of classes and images."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mumoe.analysis.chosen_images import ChosenImages, choose_combination_images, choose_images, image_label
from mumoe.analysis.coefficient_store import CoefficientStore
from mumoe.analysis.expert_notes import ExpertNotes
from mumoe.analysis.findings import COMBINATIONS, Combination, Effect, UnitStudy
from mumoe.analysis.highlights import combinations_to_show
from mumoe.analysis.study import Study
from mumoe.data.base import NoImages
from mumoe.errors import UserError
from mumoe.files import read_json, recovered
from mumoe.plots.sprites import ImageView
from mumoe.records import read_typed, reading
from mumoe.reports.views import (
    ClassLoss,
    CombinationView,
    ControlView,
    ExpertView,
    LevelView,
    Missing,
    Neighbour,
    OccurrenceView,
    OccurringView,
)
from mumoe.results import EvalResult

if TYPE_CHECKING:
    from mumoe.data.base import ImageData
    from mumoe.training.opening import StoredRun

COMBINATION_IMAGES = 6
"""Images of each combination of experts that is shown."""

__all__ = ["Analyzed", "evaluations_of", "read_experts", "read_study"]

Images = Mapping[int, tuple[tuple[ImageView, ...], tuple[ImageView, ...]]]
"""By expert of a level: images drawn at random, and those with the largest coefficients."""

Nearest = Mapping[str, Sequence[Sequence[tuple[int, float]]]]
"""One level of neighbours.json: ``by_weight`` and ``by_coefficient``, for each expert (expert, cosine)."""


@dataclass(frozen=True)
class Analyzed:
    """The experts of one run; `split` is the one analyzed, `missing` is what the analysis lacks."""

    split: str = ""
    levels: tuple[LevelView, ...] = ()
    combinations: tuple[CombinationView, ...] = ()
    missing: tuple[Missing, ...] = ()
    occurrence: OccurrenceView | None = None


@dataclass
class _Source:
    """An analysis, and what it lacks."""

    folder: Path
    study: Study
    right: Mapping[str, int]
    command: str
    notes: ExpertNotes
    missing: list[Missing] = field(default_factory=list)

    @property
    def single_units(self) -> list[UnitStudy]:
        """The units of each level, without the combinations of a hierarchy."""
        return [units for units in self.study.study.units if units.units != COMBINATIONS]

    def losses(self, effect: Effect) -> tuple[ClassLoss, ...]:
        """Classes that change, with names, intervals and right answers before."""
        names, intervals = self.study.classes, effect.loss_intervals or [None] * len(effect.losses)
        return tuple(
            ClassLoss(c, names[c], d, interval, self.right.get(names[c]))
            for (c, d), interval in zip(effect.losses, intervals, strict=True)
        )

    def names(self, positions: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.study.classes[c] for c in positions)

    def lacks(self, part: str, reason: str, command: str = "") -> None:
        self.missing.append(Missing(part, reason, command))


def read_study(run: Path) -> Study | None:
    """The study of a run on images, or None if it was not analyzed.

    Raises:
        UserError: If it is damaged.
    """
    path = run / "analysis" / "analysis.json"
    if not path.is_file():
        return None
    study = Study.load(path)
    if not study.study.units:
        raise UserError(f"report: expected an analysis in {path}, got one without units. Run: mumoe analyze {run}")
    return study


def evaluations_of(facts: Mapping[str, Any]) -> dict[str, EvalResult]:
    """Evaluations by split that run.json records; empty while the run is not finished."""
    found = (facts.get("result") or {}).get("evaluations", {})
    return read_typed(dict[str, EvalResult], found, "run.json")


def read_experts(run: StoredRun, *, data: ImageData | None = None, most_images: int = 20) -> Analyzed:
    """The experts of a run, as far as `mumoe analyze` has measured them.

    Args:
        run: The run.
        data: Its images, to choose those of every expert from; without it the few that the analysis drew are shown.
        most_images: Images of each expert and kind.

    Raises:
        UserError: If a file of the analysis is damaged.
    """
    command, study = f"mumoe analyze {run.path}", read_study(run.path)
    if study is None:
        reason = "The run has not been analyzed: what each expert does is not known."
        return Analyzed(missing=(Missing("analysis", reason, command),))
    if study.split != "test":
        command = f"mumoe analyze {run.path} --split {study.split}"
    right = _right_answers(evaluations_of(run.facts).get(study.split), bool(run.facts["multi_label"]))
    source = _Source(run.path / "analysis", study, right, command, ExpertNotes.of_run(run.path))
    if run.on_feature_file:
        images: list[Images] = []
        source.lacks("images", "The run was trained on features computed elsewhere: it has no images.")
    else:
        images = _images(source, data, most_images)
    nearest = _nearest(source)
    levels = tuple(
        _level(source, n, units, _at(images, n, {}), _at(nearest, n, {})) for n, units in enumerate(source.single_units)
    )
    effects = [effect for units in source.single_units for effect in units.modes["zero"].effects]
    if any(effect.losses and not effect.loss_intervals for effect in effects):
        source.lacks("loss intervals", "The losses of single classes were measured without intervals.", command)
    occurrence = _occurrence(source, data)
    return Analyzed(study.split, levels, _combinations(source), tuple(source.missing), occurrence)


def _right_answers(evaluation: EvalResult | None, multi_label: bool) -> dict[str, int]:
    """Right answers by class, from shares: of the class's images, or for a 0/1 target of all images."""
    if evaluation is None:
        return {}
    counts = {name: evaluation.count if multi_label else count for name, count in evaluation.class_counts.items()}
    return {name: round((evaluation.per_class.get(name) or 0.0) * count) for name, count in counts.items()}


def _at(found: Sequence[Any], position: int, otherwise: Any) -> Any:
    return found[position] if position < len(found) else otherwise


def _level(source: _Source, level: int, units: UnitStudy, images: Images, nearest: Nearest) -> LevelView:
    zero, usage = units.modes["zero"], _at(source.study.study.usage, level, None)
    effects = {effect.unit: effect for effect in zero.effects}
    controls = {
        effect.unit: ControlView(effect.polysemanticity, effect.strong) for effect in units.load_control.effects
    }

    def expert(n: int) -> ExpertView:
        effect, (random, top) = effects.get(n), images.get(n, ((), ()))
        given = source.notes.of(n, level)
        return ExpertView(
            level=level,
            expert=n,
            load=usage.load[n] if usage else None,
            touched=usage.touched[n] if usage else None,
            mean_coefficient=usage.mean_coefficient[n] if usage else None,
            with_effect=effect is not None,
            polysemanticity=effect.polysemanticity if effect else None,
            interval=effect.interval if effect else None,
            strong=effect is not None and effect.strong,
            images=effect.images if effect else 0,
            control=controls.get(n),
            losses=source.losses(effect) if effect else (),
            by_weight=_neighbours(nearest, "by_weight", n),
            by_coefficient=_neighbours(nearest, "by_coefficient", n),
            random=random,
            top=top,
            name=given.name,
            note=given.note,
        )

    views, hint = tuple(map(expert, range(zero.units))), source.study.hint()
    return LevelView(level, units.units, usage, units.modes, units.load_control, views, hint)


def _neighbours(nearest: Nearest, kind: str, n: int) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(expert, cosine) for expert, cosine in nearest[kind][n]) if nearest.get(kind) else ()


def _nearest(source: _Source) -> list[Nearest]:
    path = source.folder / "neighbours.json"
    if path.is_file():
        kind = list[dict[str, list[list[tuple[int, float]]]]]
        with reading(path, f"Run: {source.command}"):
            return list(read_typed(kind, read_json(path, "report")["levels"], f"report: {path}"))
    if source.study.study.usage:
        source.lacks("neighbours", "Which experts are alike was not measured.", source.command)
    return []


# Images --------------------------------------------------------------------------------------------------------


def _images(source: _Source, data: ImageData | None, most: int) -> list[Images]:
    """Images of every expert by level."""
    store, usage = recovered(source.folder / "coefficients"), source.study.study.usage
    if data is not None and most and (store / "index.json").is_file():
        return _chosen(CoefficientStore(store), data, most, source.study.seed)
    grid = recovered(source.folder / "images") / "grid.json"
    if not grid.is_file():
        if usage:
            source.lacks("images", "No images of the experts are known.", source.command)
        return []
    with reading(grid, f"Run: {source.command}"):
        return _of_grid(source, data, most, grid, read_json(grid, "report")["shown"])


def _of_grid(source: _Source, data: ImageData | None, most: int, grid: Path, found: Any) -> list[Images]:
    """The images that the analysis drew."""
    usage = source.study.study.usage
    if usage[0].experts_above_threshold > len(found) or data is None:
        reason = f"The image set could not be opened: only the {len(found)} experts drawn by the analysis have images."
        source.lacks("images", reason)
    return [
        {entry["expert"]: (_drawn(entry["random"][:most], grid), _drawn(entry["top"][:most], grid)) for entry in found}
    ]


def _drawn(items: Sequence[Mapping[str, Any]], grid: Path) -> tuple[ImageView, ...]:
    folder = grid.parent / "thumbnails"
    return tuple(
        ImageView(item["image"], item["label"], item["coefficient"], str(folder / f"{int(item['image'])}.png"))
        for item in items
    )


def _image_views(store: CoefficientStore, data: ImageData, kept: ChosenImages) -> tuple[ImageView, ...]:
    images = kept.image if store.images is None else np.asarray(store.images)[kept.image]
    pairs = zip(images.tolist(), kept.value.tolist(), strict=True)
    return tuple(ImageView(image, image_label(data, image), value) for image, value in pairs)


def _chosen(store: CoefficientStore, data: ImageData, most: int, seed: int) -> list[Images]:
    views = functools.partial(_image_views, store, data)
    levels = [store.level(level=position) for position in range(store.num_levels())]
    found = [choose_images(level, each=most, seed=seed)[0] for level in levels]
    return [{n: (views(random), views(top)) for n, (random, top) in kinds.items()} for kinds in found]


# Hierarchy -----------------------------------------------------------------------------------------------------


def _combinations(source: _Source) -> tuple[CombinationView, ...]:
    study = source.study.study
    if not study.combinations:
        return ()
    joint = source.study.units(COMBINATIONS)
    effects = {effect.unit: effect for effect in joint.modes["zero"].effects}
    sizes = tuple(units.modes["zero"].units for units in source.single_units)
    views = [
        _combination(source, found, effects.get(int(np.ravel_multi_index(found.experts, sizes))))
        for found in study.combinations
    ]
    return tuple(sorted(views, key=lambda view: math.inf if view.polysemanticity is None else view.polysemanticity))


def _combination(source: _Source, found: Combination, effect: Effect | None) -> CombinationView:
    return CombinationView(
        experts=found.experts,
        classes_by_level=tuple(map(source.names, found.classes_by_level)),
        classes_of_all=source.names(found.classes_of_all),
        classes_of_combination=source.names(found.classes_of_combination),
        agreement=found.agreement,
        polysemanticity=effect.polysemanticity if effect else None,
        losses=source.losses(effect) if effect else (),
    )


def _occurrence(source: _Source, data: ImageData | None) -> OccurrenceView | None:
    """The combinations that occur, those to show with their images; None without combinations."""
    study = source.study.study
    joint = next((units for units in study.units if units.units == COMBINATIONS), None)
    if joint is None:
        return None
    shown = combinations_to_show(joint)
    effects = {effect.unit: effect for effect in joint.modes["zero"].effects}
    controls = {
        effect.unit: ControlView(effect.polysemanticity, effect.strong) for effect in joint.load_control.effects
    }
    experts = [study.experts_of(joint, unit) for unit in shown]
    images = _combination_images(source, data, experts)
    views = tuple(
        _occurring(source, index, joint.load_of(unit), effects.get(unit), controls.get(unit), top)
        for unit, index, top in zip(shown, experts, images, strict=True)
    )
    loads = np.array([load for _, load in joint.listed() if load] or [0])
    least, median, most = map(int, np.quantile(loads, (0, 0.5, 1), method="lower"))
    occurring = int((loads > 0).sum())
    modes = {mode: replace(part, effects=()) for mode, part in joint.modes.items()}
    control = replace(joint.load_control, effects=())
    return OccurrenceView(joint.total, occurring, least, median, most, modes, control, views)


def _occurring(
    source: _Source,
    experts: tuple[int, ...],
    load: int,
    effect: Effect | None,
    control: ControlView | None,
    top: tuple[ImageView, ...],
) -> OccurringView:
    return OccurringView(
        experts=experts,
        load=load,
        polysemanticity=effect.polysemanticity if effect else None,
        strong=effect is not None and effect.strong,
        images=effect.images if effect else 0,
        control=control,
        losses=source.losses(effect) if effect else (),
        top=top,
    )


def _combination_images(
    source: _Source, data: ImageData | None, combinations: Sequence[tuple[int, ...]]
) -> list[tuple[ImageView, ...]]:
    """The images of each combination with the largest products of coefficients; none without images."""
    folder = recovered(source.folder / "coefficients")
    if data is None or isinstance(data.open_image, NoImages) or not (folder / "index.json").is_file():
        return [()] * len(combinations)
    store = CoefficientStore(folder)
    levels = [store.level(level=position) for position in range(store.num_levels())]
    found = choose_combination_images(levels, combinations, each=COMBINATION_IMAGES) if combinations else []
    return [_image_views(store, data, kept) for kept in found]
