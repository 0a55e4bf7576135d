"""Measures of how specialized experts are, from counts of right answers.

The question of Section 4.1.2 of the paper is causal: had expert n not contributed its weight, would the
accuracy of class c have dropped? With y_c and y_c^(n) the accuracy of class c before and after expert n is
ablated, its difference vector and class-level polysemanticity are (eq. 5)

    d_c^(n) = (y_c - y_c^(n)) / y_c          p^(n) = || d^(n) - onehot(argmax_c d_c^(n)) ||_2

so p = 0 means that one class loses everything and no other class changes, and an expert with hardly any effect has p
near 1. Classes that were never right before have no d and are left out (and counted); d may be negative.

Everything here works on counts and on lists of changed answers, never on a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.analysis.findings import Effect, Interval, Specialization
from mumoe.analysis.settings import LEAST_LOST, STRONG
from mumoe.errors import UserError
from mumoe.progress import DELAY, Progress
from mumoe.statistics import bootstrap_interval, wilson

__all__ = [
    "Answers",
    "Bootstrap",
    "Changes",
    "bootstrap",
    "counts_after",
    "differences",
    "lost_by_unit",
    "polysemanticity",
    "shuffle_units",
    "specialization",
    "strong_classes",
    "strong_losses",
]

BLOCK = 100_000
"""Images at a time whose answers are counted as floats."""

CELLS = 2_000_000
"""Units x classes at a time that are held as arrays: of combinations of experts there may be millions."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """The right answers of a model before any intervention.

    Attributes:
        labels: (images,) int64 class of each image, or None when multi-label.
        right: (images,) bool, or (images, classes) bool when multi-label.
        num_classes: Number of classes or targets.
    """

    labels: Ints | None
    right: npt.NDArray[np.bool_]
    num_classes: int

    @property
    def total(self) -> Ints:
        """(classes,) images per class; every image counts for every target when multi-label."""
        if self.labels is None:
            return np.full(self.num_classes, len(self.right), dtype=np.int64)
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    @property
    def before(self) -> Ints:
        """(classes,) right answers per class."""
        if self.labels is None:
            return np.asarray(self.right.sum(0), dtype=np.int64)
        return np.bincount(self.labels[self.right], minlength=self.num_classes).astype(np.int64)


@dataclass(frozen=True)
class Changes:
    """Every answer that some ablation turns from right to wrong or back; nothing else is stored.

    Attributes:
        image: (changes,) position of the image.
        unit: (changes,) position of the ablated unit.
        label: (changes,) class whose count changes.
        sign: (changes,) -1 a right answer lost, +1 one gained.
        num_units: Number of units that were ablated, those without any change included.
    """

    image: Ints
    unit: Ints
    label: Ints
    sign: Ints
    num_units: int


def counts_after(answers: Answers, changes: Changes) -> Ints:
    """Right answers per unit and class after that unit's ablation, (units, classes)."""
    size = changes.num_units * answers.num_classes
    cell = changes.unit * answers.num_classes + changes.label
    delta = np.bincount(cell, weights=changes.sign, minlength=size).astype(np.int64)
    return answers.before[None] + delta.reshape(changes.num_units, answers.num_classes)


def differences(before: npt.ArrayLike, after: npt.ArrayLike) -> Floats:
    """d of eq. 5: the share of its right answers that each class loses.

    Args:
        before: (classes,) right answers, or accuracies, before the intervention.
        after: (units, classes) the same after each intervention.

    Returns:
        (units, classes); NaN in the columns of classes that were never right before.
    """
    y, yhat = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if yhat.ndim != 2 or y.shape != yhat.shape[1:]:
        raise UserError(
            f"differences: expected before (classes,) and after (units, classes), got {y.shape} and "
            f"{yhat.shape}. Give one row of counts per intervention."
        )
    defined = y > 0
    d: Floats = np.full(yhat.shape, np.nan)
    d[:, defined] = (y[defined] - yhat[:, defined]) / y[defined]
    return d


def polysemanticity(d: npt.ArrayLike) -> Floats:
    """p of eq. 5 for each row of d, in [0, inf): 0 loses one whole class and leaves all others alone.

    NaN entries (classes without a d) are left out. A row of zeros has p = 1, a row without any class NaN.
    """
    rows = np.asarray(d, dtype=np.float64)
    known = ~np.isnan(rows)
    filled = np.where(known, rows, 0.0)
    top = np.where(known, rows, -np.inf).max(1, initial=-np.inf)
    return _distance((filled**2).sum(1), np.where(np.isfinite(top), top, np.nan))


def _distance(squares: Floats, top: Floats) -> Floats:
    """||d - onehot(argmax d)|| from the sum of squares and the maximum of d."""
    distance: Floats = np.sqrt(np.maximum(squares - 2 * top + 1, 0.0))
    return distance


def specialization(
    answers: Answers,
    changes: Changes,
    *,
    resamples: int = 0,
    seed: int = 0,
    most_losses: int = 20,
    least_lost: int = LEAST_LOST,
    progress: bool = False,
) -> Specialization:
    """All measures of eq. 5 and the counts that belong beside their mean.

    Args:
        answers: Right answers before the interventions.
        changes: The answers that each intervention changes.
        resamples: Bootstrap resamples of the images for the intervals; 0 leaves the intervals out.
        seed: Seed of the bootstrap.
        most_losses: Classes listed per unit, those that change most first.
        least_lost: Right answers that a class must lose for a unit to be strong.
        progress: Whether to show the progress of the bootstrap on stderr.

    Raises:
        UserError: If there are no images, or `least_lost` is below 1.
    """
    if not len(answers.right):
        raise UserError("specialization: expected at least one image, got none. Choose a split that has images.")
    if least_lost < 1:
        raise UserError(f"specialization: expected least_lost >= 1, got {least_lost}. {LEAST_LOST} is the default.")
    how: dict[str, Any] = {"seed": seed, "least_lost": least_lost, "progress": progress}
    draws = bootstrap(answers, changes, resamples=resamples, **how) if resamples else None
    effects: list[Effect] = []
    behind = [np.zeros(0, dtype=np.int64)]
    for units, part in _changed_units(changes, answers.num_classes):
        found, images = _effects(answers, units, part, draws, most_losses, least_lost)
        effects, behind = effects + found, [*behind, images]
    strong = [effect.polysemanticity for effect in effects if effect.strong]
    before = answers.before
    return Specialization(
        units=changes.num_units,
        classes=answers.num_classes,
        images=len(answers.right),
        accuracy=float(answers.right.mean()),
        classes_without_images=int((answers.total == 0).sum()),
        classes_never_right=int(((answers.total > 0) & (before == 0)).sum()),
        with_effect=len(effects),
        mean_polysemanticity=float(np.mean([effect.polysemanticity for effect in effects])) if effects else None,
        mean_interval=draws.mean if draws else None,
        strong=len(strong),
        strong_interval=draws.strong if draws else None,
        mean_polysemanticity_strong=float(np.mean(strong)) if strong else None,
        effects=tuple(effects),
        least_lost=least_lost,
        strong_images=len(np.unique(np.concatenate(behind))),
    )


def _changed_units(changes: Changes, classes: int) -> Iterator[tuple[Ints, Changes]]:
    """The units that change an answer, in order, with their changes; a bounded number at a time.

    Yields:
        (units,) positions of the units, and their changes with the units numbered from 0.
    """
    units, unit = np.unique(changes.unit, return_inverse=True)
    order = np.argsort(unit, kind="stable")
    size = max(1, CELLS // max(classes, 1))
    for start in range(0, len(units), size):
        chosen = units[start : start + size]
        mine = order[np.searchsorted(unit[order], start) : np.searchsorted(unit[order], start + len(chosen))]
        columns = (changes.image[mine], unit[mine] - start, changes.label[mine], changes.sign[mine])
        yield chosen, Changes(*columns, num_units=len(chosen))


def _effects(
    answers: Answers, units: Ints, changes: Changes, draws: Bootstrap | None, most_losses: int, least_lost: int
) -> tuple[list[Effect], Ints]:
    """Effects of the units that have one, and the images behind those that are strong; as from `_changed_units`."""
    before, after = answers.before, counts_after(answers, changes)
    d = differences(before, after)
    strong = strong_losses(before, after, least_lost)
    images, all_images = _images_behind(changes, strong)
    p, known = polysemanticity(d), np.where(np.isnan(d), 0.0, d)
    active = np.flatnonzero(np.any(known != 0, axis=1))
    likely = loss_intervals(answers, changes, active)
    effects = [
        _effect(int(units[n]), d[n], float(p[n]), draws, most_losses, spans, int(images[n]), bool(strong[n].any()))
        for n, spans in zip(active, likely, strict=True)
    ]
    return effects, all_images


def lost_by_unit(answers: Answers, changes: Changes, least_lost: int = LEAST_LOST) -> dict[int, npt.NDArray[np.bool_]]:
    """Of every strong unit, by its position, the (classes,) that lose enough to make it strong (`strong_losses`)."""
    found: dict[int, npt.NDArray[np.bool_]] = {}
    for units, part in _changed_units(changes, answers.num_classes):
        cells = strong_losses(answers.before, counts_after(answers, part), least_lost)
        found |= {int(units[n]): cells[n] for n in np.flatnonzero(cells.any(1))}
    return found


def strong_losses(before: Ints, after: Ints, least_lost: int = LEAST_LOST) -> npt.NDArray[np.bool_]:
    """Whether a class loses enough to make a unit strong: the one rule, for units, controls, levels and combinations.

    Args:
        before: (classes,) right answers before the intervention.
        after: (units, classes) the same after each intervention.
        least_lost: Least number of right answers lost, in addition to the share `STRONG`.

    Returns:
        (units, classes).
    """
    lost = before - after
    return np.asarray((before > 0) & (lost >= STRONG * before) & (lost >= least_lost))


def strong_classes(before: Ints, after: Ints, least_lost: int = LEAST_LOST) -> Ints:
    """The class for which each unit is strong: of several the one that loses the largest share, then the most answers.

    Arguments as for `strong_losses`; returns (units,), -1 where a unit is not strong.
    """
    enough = strong_losses(before, after, least_lost)
    share = np.where(enough, differences(before, after), -np.inf)
    lost = np.where(share == share.max(1, keepdims=True, initial=-np.inf), before - after, -1)
    return np.where(enough.any(1), lost.argmax(1), -1).astype(np.int64)


def _images_behind(changes: Changes, strong: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """(units,) distinct images whose lost right answers make each unit strong, and those images of all units."""
    behind = (changes.sign < 0) & strong[changes.unit, changes.label]
    pairs = np.unique(np.stack([changes.unit[behind], changes.image[behind]]), axis=1)
    return np.bincount(pairs[0], minlength=changes.num_units).astype(np.int64), np.unique(pairs[1])


def loss_intervals(answers: Answers, changes: Changes, units: Ints) -> Floats:
    """95% interval of every d, (len(units), classes, 2): Wilson's, of the share of right answers that are lost.

    Wrong answers that the intervention corrects are counted without uncertainty: they shift the interval. Unlike a
    bootstrap interval it keeps a width where all, or none, of a few right answers are lost.
    """
    size = answers.num_classes
    position = np.full(changes.num_units, -1, dtype=np.int64)
    position[units] = np.arange(len(units))
    cell = position[changes.unit] * size + changes.label
    known = position[changes.unit] >= 0

    def count(sign: int) -> Floats:
        chosen = cell[known & (changes.sign == sign)]
        return np.bincount(chosen, minlength=len(units) * size).reshape(len(units), size).astype(np.float64)

    right = np.maximum(answers.before, 1).astype(np.float64)
    low, high = wilson(count(-1), right)
    gained = count(1) / right
    return np.stack([low - gained, high - gained], axis=-1)


def _effect(
    unit: int, d: Floats, p: float, draws: Bootstrap | None, most: int, spans: Floats, images: int, strong: bool
) -> Effect:
    known = np.where(np.isnan(d), -np.inf, d)
    top = int(known.argmax())
    changed = np.flatnonzero(np.isfinite(known) & (known != 0))
    by_size = changed[np.argsort(-np.abs(known[changed]), kind="stable")][:most]
    listed = by_size[np.argsort(-known[by_size], kind="stable")]
    return Effect(
        unit=unit,
        polysemanticity=p,
        interval=draws.units.get(unit) if draws else None,
        top_class=top,
        top_loss=float(known[top]),
        strong=strong,
        losses=tuple((int(c), float(known[c])) for c in listed),
        loss_intervals=tuple((float(spans[c, 0]), float(spans[c, 1])) for c in listed),
        images=images,
    )


@dataclass(frozen=True)
class Bootstrap:
    """95% intervals over resampled images.

    Attributes:
        units: Interval of p for every unit with at least one changed answer.
        mean: Interval of the mean p over the units with effect; None if no unit ever has one.
        strong: Interval of the number of strong units.
    """

    units: dict[int, Interval]
    mean: Interval | None
    strong: Interval


@dataclass(frozen=True)
class _Cells:
    """The changes sorted by (unit, class): the first change of each cell, the first cell of each unit."""

    image: Ints
    sign: Ints
    cell_start: Ints
    cell_label: Ints
    unit_start: Ints
    unit: Ints


def _cells(answers: Answers, changes: Changes) -> _Cells:
    key = changes.unit * answers.num_classes + changes.label
    order = np.argsort(key, kind="stable")
    cells, cell_start = np.unique(key[order], return_index=True)
    units, unit_start = np.unique(cells // answers.num_classes, return_index=True)
    return _Cells(
        image=changes.image[order],
        sign=changes.sign[order],
        cell_start=cell_start.astype(np.int64),
        cell_label=cells % answers.num_classes,
        unit_start=unit_start.astype(np.int64),
        unit=units,
    )


def bootstrap(
    answers: Answers,
    changes: Changes,
    *,
    resamples: int = 1000,
    seed: int = 0,
    least_lost: int = LEAST_LOST,
    progress: bool = False,
) -> Bootstrap:
    """Confidence intervals by drawing the images again with replacement.

    Only changed answers are touched, so a resample costs about as much as there are changes, not
    units x classes. In a resample where a unit has no effect its p is 1, as eq. 5 gives. Resamples lose more
    of a small class, so they move the mean p upwards, often by more than its spread: its interval is moved back.
    The others are percentiles. All hold their estimates (`mumoe.statistics.bootstrap_interval`).
    """
    cells = _cells(answers, changes)
    if not len(cells.unit):
        return Bootstrap({}, None, (0.0, 0.0))
    blocks = []
    with Progress("Resampling images", resamples, enabled=progress, delay=DELAY) as bar:
        for block in _weights(answers, cells, resamples, seed):
            blocks.append(_resample(block, answers, cells, least_lost))
            bar.advance(len(block))
    p, effect, strong = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    own_p, own_effect, own_strong = _resample(np.ones((1, len(answers.right))), answers, cells, least_lost)
    low, high = bootstrap_interval(p, own_p[0])
    units = {int(n): (float(a), float(b)) for n, a, b in zip(cells.unit, low, high, strict=True)}
    counted = bootstrap_interval(strong.sum(1), own_strong.sum())
    mean = _mean_interval(_means(p, effect), _means(own_p, own_effect))
    return Bootstrap(units, mean, (float(counted[0]), float(counted[1])))


def _means(p: Floats, effect: npt.NDArray[np.bool_]) -> Floats:
    """Mean p over the units with an effect, of each resample that has any."""
    some = effect.any(1)
    return np.asarray((p * effect).sum(1)[some] / effect.sum(1)[some])


def _mean_interval(draws: Floats, own: Floats) -> Interval | None:
    """The interval of the mean p from its draws and its value, (1,); None if it does not exist."""
    if not len(draws) or not len(own):
        return None
    low, high = bootstrap_interval(draws, own[0], moved=True)
    return max(float(low), 0.0), float(high)


def _weights(answers: Answers, cells: _Cells, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, in blocks (resamples, images) of bounded size."""
    rng = np.random.default_rng(seed)
    images = len(answers.right)
    block = max(1, 4_000_000 // max(images, len(cells.image)))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(images, size=(size, images))
        flat = (drawn + np.arange(size)[:, None] * images).ravel()
        yield np.bincount(flat, minlength=size * images).reshape(size, images).astype(np.float64)


def _resample(
    weights: Floats, answers: Answers, cells: _Cells, least_lost: int
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """p, whether there is an effect, whether it is strong: each (resamples, units with changes)."""
    before = _weighted_before(weights, answers)
    lost = -np.add.reduceat(weights[:, cells.image] * cells.sign, cells.cell_start, axis=1)
    base = before[:, cells.cell_label]
    known = base > 0
    d = np.where(known, lost / np.maximum(base, 1.0), 0.0)
    squares = np.add.reduceat(d**2, cells.unit_start, axis=1)
    top = np.maximum.reduceat(np.where(known, d, -np.inf), cells.unit_start, axis=1)
    listed = np.add.reduceat(known.astype(np.int64), cells.unit_start, axis=1)
    others = (before > 0).sum(1)[:, None] > listed
    top = np.where(others, np.maximum(top, 0.0), top)
    top = np.where(np.isfinite(top), top, 0.0)
    enough = known & (lost >= STRONG * base) & (lost >= least_lost)
    strong = np.logical_or.reduceat(enough, cells.unit_start, axis=1)
    return _distance(squares, top), squares > 0, strong


def _weighted_before(weights: Floats, answers: Answers) -> Floats:
    if answers.labels is None:
        images = [slice(start, start + BLOCK) for start in range(0, len(answers.right), BLOCK)]
        parts = [weights[:, part] @ answers.right[part].astype(np.float64) for part in images]
        return np.sum(parts, axis=0)  # of whole numbers: exact in any order
    counted = np.flatnonzero(answers.right)
    flat = np.arange(len(weights))[:, None] * answers.num_classes + answers.labels[counted]
    size = len(weights) * answers.num_classes
    summed = np.bincount(flat.ravel(), weights=weights[:, counted].ravel(), minlength=size)
    return np.asarray(summed, dtype=np.float64).reshape(len(weights), answers.num_classes)


def shuffle_units(changes: Changes, load: npt.ArrayLike, *, units: Ints | None = None, seed: int = 0) -> Changes:
    """The control "random units of the same load": deal the ablated contributions out again at random.

    An ablation removes one contribution from each row that uses the unit. Here every contribution keeps what
    its removal does to its row, and the contributions are dealt to the units at random, each unit getting as many as it
    had. The specialization that remains comes from load alone.

    Args:
        changes: What removing each contribution changed.
        load: (units,) contributions per unit: rows with a coefficient above 0.
        units: (units,) positions of the units with this load, ascending; all others have none. None is every unit.
        seed: Seed of the random deal.

    Raises:
        UserError: If `load` has another length or is smaller than the changes a unit caused.
    """
    counts = np.asarray(load, dtype=np.int64)
    listed = np.arange(changes.num_units) if units is None else units
    pairs = np.unique(np.stack([changes.unit, changes.image]), axis=1)
    place = np.searchsorted(listed, pairs[0])
    if len(counts) != len(listed) or not _is_load(counts, listed, place, pairs[0]):
        raise UserError(
            f"shuffle_units: expected the load of each of {changes.num_units} units, at least the images it "
            f"changes, got {len(counts)} numbers. Count the rows with a coefficient above 0."
        )
    slots = np.random.default_rng(seed).choice(counts.sum(), size=pairs.shape[1], replace=False)
    dealt = listed[np.searchsorted(np.cumsum(counts), slots, side="right")]
    position = _position(pairs, changes)
    return _without_repeats(changes, dealt[position])


def _is_load(counts: Ints, listed: Ints, place: Ints, unit: Ints) -> bool:
    """Whether all units of (unit, image) pairs are listed, at these places, with at least as many contributions."""
    if np.any(place == len(listed)) or np.any(listed[place] != unit):
        return False
    return bool(np.all(np.bincount(place, minlength=len(counts)) <= counts))


def _position(pairs: Ints, changes: Changes) -> Ints:
    """Which (unit, image) pair each change belongs to (several targets of one image can change together)."""
    width = int(max(pairs[1].max(initial=0), changes.image.max(initial=0))) + 1
    keys = pairs[0] * width + pairs[1]
    return np.searchsorted(keys, changes.unit * width + changes.image).astype(np.int64)


def _without_repeats(changes: Changes, unit: Ints) -> Changes:
    """One answer can be lost or gained only once per unit, even if a unit was dealt two parts of its row."""
    table = np.stack([unit, changes.image, changes.label])
    _, first = np.unique(table, axis=1, return_index=True)
    return Changes(changes.image[first], unit[first], changes.label[first], changes.sign[first], changes.num_units)
