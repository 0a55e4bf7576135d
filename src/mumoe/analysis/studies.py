"""Everything that is asked of one layer on one data set, in one call: use, interventions, controls, hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from mumoe.analysis.capturing import evaluating
from mumoe.analysis.coefficients import CoefficientStore, CoefficientWriter
from mumoe.analysis.contributions import MODES, Mode
from mumoe.analysis.hierarchy import and_reading
from mumoe.analysis.interventions import Interventions, Rest, intervene
from mumoe.analysis.measures import LEAST_LOST
from mumoe.analysis.results import Combination, Specialization, Usage
from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.errors import JobError, UserError, unknown_name
from mumoe.layers import MuMoE

__all__ = ["LayerStudy", "UnitStudy", "study", "write_coefficients"]

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Reads the data from its beginning: (inputs of the layer, labels), batch by batch."""


@dataclass(frozen=True)
class UnitStudy:
    """One kind of unit of a layer.

    Attributes:
        units: ``experts``, ``level 0``, .., ``combinations`` or ``neurons``.
        modes: Specialization by what takes an ablated unit's place; ``zero`` is the paper's.
        load_control: The same for units of the same load made up of random contributions.
        load: Images to which each unit contributes.
        silent: Pairs of image and unit after whose ablation nothing is left of the layer's output.
        rechecked: Batches evaluated once more by the plain method because rounding could have decided.
    """

    units: str
    modes: dict[str, Specialization]
    load_control: Specialization
    load: tuple[int, ...]
    silent: int
    rechecked: int


@dataclass(frozen=True)
class LayerStudy:
    """What the units of a layer do.

    Attributes:
        usage: Use of the experts, one per level; empty for neurons.
        units: Per level, and for the combinations of a hierarchy.
        combinations: The "and" reading of a hierarchy's strong combinations.
    """

    usage: tuple[Usage, ...]
    units: tuple[UnitStudy, ...]
    combinations: tuple[Combination, ...]


def study(
    layer: nn.Module,
    batches: Batches,
    *,
    rest: Rest | None = None,
    store: CoefficientStore | None = None,
    modes: Sequence[Mode] = ("zero",),
    resamples: int = 1000,
    seed: int = 0,
    least_lost: int = LEAST_LOST,
    threshold: float = 0.5,
) -> LayerStudy:
    """Measure a MuMoE layer, a sparse mixture, or the neurons of a parameter-matched linear layer.

    Args:
        layer: The layer.
        batches: Reads its inputs and labels from the beginning.
        rest: The network after it; None for a final layer.
        store: Its captured coefficients, see `write_coefficients`; None leaves `usage` empty.
        modes: What takes an ablated expert's place; ``zero`` is always measured.
        resamples: Bootstrap resamples of the images for the confidence intervals.
        seed: Seed of bootstrap, control and resampling.
        least_lost: Right answers that a class must lose, besides half of them, for a unit to be strong.
        threshold: Coefficient from which an image counts as processed by an expert, in `usage`.

    Raises:
        UserError: If the layer has no units, a mode is unknown, or there are no images.
    """
    for mode in modes:
        if mode not in MODES:
            raise unknown_name("study", "mode", mode, MODES)
    kinds = _kinds(layer)
    wanted: list[Mode] = list(dict.fromkeys(["zero", *(modes if isinstance(layer, MuMoE) else ())]))
    plain: list[Interventions] = []
    units = []
    for name, level in kinds:
        runs = {mode: intervene(layer, batches(), level=level, mode=mode, rest=rest, seed=seed) for mode in wanted}
        plain.append(runs["zero"])
        units.append(_unit_study(name, runs, resamples, seed, least_lost))
    levels = len(store_levels(layer))
    usage = tuple(store.level(level=level).usage(threshold) for level in range(levels)) if store else ()
    combinations = and_reading(plain[:-1], plain[-1], least_lost=least_lost) if len(kinds) > 1 else ()
    return LayerStudy(usage, tuple(units), combinations)


def _kinds(layer: nn.Module) -> list[tuple[str, int | None]]:
    """Names of the kinds of unit a layer has, with the level to ablate."""
    if isinstance(layer, HighRankLinear):
        return [("neurons", None)]
    if isinstance(layer, SparseMoE):
        return [("experts", None)]
    if not isinstance(layer, MuMoE):
        raise UserError(
            f"study: expected a MuMoE layer (or SparseMoE, HighRankLinear), got {type(layer).__name__}. "
            "Analyze a run with a head such as CPMuMoE-r256-e128."
        )
    levels = len(layer.num_experts)
    if levels == 1:
        return [("experts", None)]
    return [*((f"level {level}", level) for level in range(levels)), ("combinations", None)]


def _unit_study(name: str, runs: dict[Mode, Interventions], resamples: int, seed: int, least_lost: int) -> UnitStudy:
    zero = runs["zero"]
    how = {"seed": seed, "least_lost": least_lost}
    return UnitStudy(
        units=name,
        modes={mode: run.specialization(resamples=resamples, **how) for mode, run in runs.items()},
        load_control=zero.load_control(**how),
        load=tuple(map(int, zero.load)),
        silent=zero.silent,
        rechecked=sum(run.rechecked for run in runs.values()),
    )


def store_levels(layer: nn.Module) -> tuple[int, ...]:
    """Number of experts of each level of a layer; empty if it has none."""
    return layer.num_experts if isinstance(layer, MuMoE | SparseMoE) else ()


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
            levels = [a.float().cpu().numpy() for a in layer.coefficients(x)]
            if not all(np.isfinite(level).all() for level in levels):
                raise JobError(
                    "write_coefficients: expected coefficients that are numbers, got NaN. "
                    "The training diverged or the features hold NaN: train again with a smaller --set lr=.. ."
                )
            writer.append("layer", levels)
        if not rows:
            raise UserError("write_coefficients: expected at least one image, got none. Choose a split with images.")
    return CoefficientStore(folder)
