"""All measurements of one layer on one data set, in one call: usage, interventions, controls, hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mumoe.analysis.capturing import find_layer
from mumoe.analysis.class_effects import lost_by_unit
from mumoe.analysis.coefficient_store import CoefficientStore, CoefficientWriter
from mumoe.analysis.contributions import ABLATABLE
from mumoe.analysis.findings import COMBINATIONS, Combination, LayerStudy, UnitStudy
from mumoe.analysis.interventions import intervene, makes_logits
from mumoe.analysis.outcomes import Interventions, Rest
from mumoe.analysis.settings import LEAST_LOST, MODES, Mode
from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.coefficients import Coefficients, as_coefficients
from mumoe.errors import JobError, UserError, unknown_name
from mumoe.layers import MuMoE, MuMoEBlock
from mumoe.modes import evaluating

__all__ = ["and_reading", "count_passes", "study_layer", "write_coefficients"]

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Reads the data from its beginning: (inputs of the layer, labels), batch by batch."""


def study_layer(
    model: nn.Module,
    batches: Batches,
    *,
    layer: str | None = None,
    rest: Rest | None = None,
    store: CoefficientStore | None = None,
    modes: Sequence[Mode] = ("zero",),
    resamples: int = 1000,
    seed: int = 0,
    least_lost: int = LEAST_LOST,
    threshold: float = 0.5,
    progress: bool = False,
) -> LayerStudy:
    """Measure a MuMoE layer, a sparse mixture, or the neurons of a parameter-matched linear layer.

    Args:
        model: The layer, or a model with MuMoE layers in it.
        batches: Reads its inputs and labels from the beginning.
        layer: Name of the layer in the model; None uses the only one.
        rest: The network after it; see `intervene`.
        store: Its captured coefficients, see `write_coefficients`; None leaves `usage` empty.
        modes: What replaces an ablated expert; ``zero`` is always measured, of a MuMoE layer the others too.
        resamples: Bootstrap resamples of the images for the confidence intervals.
        seed: Seed of bootstrap, control and resampling.
        least_lost: A unit is strong if a class loses at least this many right answers, and at least half of them.
        threshold: Coefficient from which an image counts as processed by an expert, in `usage`.
        progress: Whether to show the progress of the bootstrap on stderr.

    Raises:
        UserError: If the layer has no units, a mode is unknown, or there are no images.
    """
    for mode in modes:
        if mode not in MODES:
            raise unknown_name("study_layer", "mode", mode, MODES)
    part = model if isinstance(model, ABLATABLE) else find_layer(model, layer, "study_layer")[1]
    kinds = _kinds(part, part is model or makes_logits(model, layer, batches()))
    wanted = _measured(part, modes)
    plain: list[Interventions] = []
    units = []
    for name, level in kinds:
        settings: dict[str, Any] = {
            "layer": None if part is model else layer,
            "level": level,
            "rest": rest,
            "seed": seed,
        }
        runs = {mode: intervene(model, batches(), mode=mode, **settings) for mode in wanted}
        plain.append(runs["zero"])
        how = {"resamples": resamples, "progress": progress}
        units.append(_unit_study(name, runs, how, seed, least_lost))
    levels = range(store.num_levels() if store else 0)
    usage = tuple(store.level(level=level).usage(threshold) for level in levels) if store else ()
    whole = kinds[-1][0] == COMBINATIONS
    combinations = and_reading(plain[:-1], plain[-1], least_lost=least_lost) if whole else ()
    return LayerStudy(usage, tuple(units), combinations)


def count_passes(layer: nn.Module, modes: Sequence[Mode], store: bool) -> int:
    """How often `write_coefficients`, where there is a `store`, and `study_layer` read the data of a final layer."""
    kinds = len(_kinds(layer, True)) if isinstance(layer, ABLATABLE) else 1
    return kinds * len(_measured(layer, modes)) + store


def _measured(layer: nn.Module, modes: Sequence[Mode]) -> list[Mode]:
    """The modes that are measured: ``zero`` always, the others of a MuMoE layer."""
    return list(dict.fromkeys(["zero", *(modes if isinstance(layer, MuMoE | MuMoEBlock) else ())]))


def _kinds(layer: nn.Module, whole: bool) -> list[tuple[str, int | None]]:
    """Names of the kinds of unit a layer has, with the level to ablate; combinations only of a `whole` final layer."""
    if isinstance(layer, HighRankLinear):
        return [("neurons", None)]
    levels = len(layer.num_experts)  # type: ignore[arg-type]
    if levels == 1:
        return [("experts", None)]
    return [*((f"level {level}", level) for level in range(levels)), *([(COMBINATIONS, None)] if whole else [])]


def _unit_study(
    name: str, runs: Mapping[Mode, Interventions], drawn: Mapping[str, Any], seed: int, least_lost: int
) -> UnitStudy:
    zero, combined = runs["zero"], name == COMBINATIONS
    how = {"seed": seed, "least_lost": least_lost}
    return UnitStudy(
        units=name,
        modes={str(mode): run.specialization(**drawn, **how) for mode, run in runs.items()},
        load_control=zero.load_control(**how),
        load=tuple(map(int, zero.load if combined else zero.all_loads())),
        silent=zero.silent,
        rechecked=sum(run.rechecked for run in runs.values()),
        occurring=tuple(map(int, zero.occurring)) if combined and zero.occurring is not None else None,
    )


def write_coefficients(
    layer: MuMoE | SparseMoE,
    batches: Batches,
    folder: str | Path,
    *,
    images: npt.NDArray[np.int64] | None = None,
) -> CoefficientStore:
    """Stream the coefficients of one layer to a folder, under the name ``layer``.

    Args:
        layer: The layer.
        batches: Reads its inputs from the beginning.
        folder: Where they go.
        images: Position of each image in its data set, in the order of the batches.

    Raises:
        UserError: If there are no images.
        JobError: If a coefficient is not finite.
    """
    rows = 0
    with evaluating(layer), CoefficientWriter(folder, {"layer": layer.num_experts}, images=images) as writer:
        for x, _ in batches():
            rows += len(x)
            levels = [a.at_least() for a in _gated(layer, x)]
            if not all(bool(level.values.isfinite().all()) for level in levels):
                raise JobError(
                    "write_coefficients: expected coefficients that are numbers, got NaN. "
                    "The training diverged or the features hold NaN: train again with a smaller `lr`."
                )
            writer.append("layer", levels)
        if not rows:
            raise UserError("write_coefficients: expected at least one image, got none. Choose a split with images.")
    return CoefficientStore(folder)


def _gated(layer: MuMoE | SparseMoE, x: Tensor) -> Iterable[Coefficients]:
    """One (rows, num_experts[e]) per level, sparse where the gate is."""
    if isinstance(layer, MuMoE):
        found: tuple[Coefficients, ...] = layer.gate(x.reshape(-1, x.shape[-1]))
        return found
    return map(as_coefficients, layer.coefficients(x))


def and_reading(
    levels: Sequence[Interventions], combinations: Interventions, *, least_lost: int = LEAST_LOST
) -> tuple[Combination, ...]:
    """Compare what each strong combination of a hierarchy's experts loses with what its experts lose alone.

    As the paper reads it (section 1, appendix C), a combination (n, m) of two levels is responsible for images that are
    both "n" and "m". Where that holds, ablating it costs the classes that n and m both cost, and no others.

    Args:
        levels: Interventions on the single levels, in order.
        combinations: Interventions on all combinations, of the same images.
        least_lost: A unit is strong if a class loses at least this many right answers, and at least half of them.
    """
    lost = [lost_by_unit(level.answers, level.changes, least_lost) for level in levels]
    joint = lost_by_unit(combinations.answers, combinations.changes, least_lost)
    sizes = [level.changes.num_units for level in levels]
    nothing = np.zeros(combinations.answers.num_classes, dtype=np.bool_)
    found = []
    for unit, classes in joint.items():
        experts = tuple(int(n) for n in np.unravel_index(unit, sizes))
        rows = [level.get(n, nothing) for level, n in zip(lost, experts, strict=True)]
        found.append(_combination(experts, rows, classes))
    return tuple(found)


def _combination(
    experts: tuple[int, ...], rows: Sequence[npt.NDArray[np.bool_]], joint: npt.NDArray[np.bool_]
) -> Combination:
    both = np.logical_and.reduce(rows)
    union = (both | joint).sum()
    return Combination(
        experts=experts,
        classes_by_level=tuple(_positions(row) for row in rows),
        classes_of_all=_positions(both),
        classes_of_combination=_positions(joint),
        agreement=float((both & joint).sum() / union) if union else None,
    )


def _positions(row: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(c) for c in np.flatnonzero(row))
