"""Seeded, disjoint splits: stratified by class, by whole groups, or by holding out a value.

Every function returns one int8 per image, its position in `mumoe.data.base.SPLITS`, so that the three splits
cover the set and never overlap. The same inputs and seed give the same answer on every machine.

The stratified split orders the images class by class, shuffled within each class, and takes every
(1 / fraction)-th one (systematic sampling). A class of any size then gets its share rounded up or down, and so
does the whole set, no matter how many small classes there are. Rounding each class separately would leave the
validation split empty if all classes held three images.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.data.columns import read_column
from mumoe.errors import UserError

__all__ = ["TEST", "TRAIN", "VAL", "carve", "group_split", "holdout_split", "stratified_split"]

TRAIN, VAL, TEST = 0, 1, 2
"""Positions of the splits in `mumoe.data.base.SPLITS`."""

SplitCodes = npt.NDArray[np.int8]
Codes = npt.NDArray[np.int64]


def stratified_split(
    labels: npt.ArrayLike, *, fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> SplitCodes:
    """Split images at random so that every class is shared out in the same proportions.

    Each class gets its share of images outside train rounded up or down, and these are shared between val and
    test in the same way. A class with any image has at least one in train, unless the train fraction is 0.

    Args:
        labels: One value per image (any type), or 0/1 rows, which are stratified by their rarest positive target.
        fractions: Shares of train, val and test; they sum to 1.
        seed: Seed of the shuffle.

    Shape:
        labels (num_images,) or (num_images, num_targets); returns (num_images,).

    Raises:
        UserError: If a fraction is negative or they do not sum to 1.
    """
    train, val, test = _fractions("stratified_split", fractions)
    strata = _strata(labels)
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(strata)), strata))
    split = np.zeros(len(strata), np.int8)
    outside = order[_every(len(order), val + test, rng.random())]
    split[outside] = TEST
    split[outside[_every(len(outside), val / (val + test) if val else 0.0, rng.random())]] = VAL
    if train > 0:
        _keep_one_for_training(split, strata, order)
    return split


def group_split(
    groups: npt.ArrayLike,
    *,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    labels: npt.ArrayLike | None = None,
) -> SplitCodes:
    """Split whole groups: all images of a group (a character, a person) land in the same split.

    Groups are taken class by class in random order, and each goes to the split that lacks most images, so the
    shares hold to within the size of a group. A class with any group has at least one in train, unless the
    train fraction is 0.

    Args:
        groups: The group of each image (any type); none may be missing.
        fractions: Shares of train, val and test, counted in images; they sum to 1.
        seed: Seed of the shuffle.
        labels: Class of each image to stratify by; a group counts for its most frequent class.

    Shape:
        groups (num_images,); labels (num_images,) or (num_images, num_targets); returns (num_images,).

    Raises:
        UserError: If a fraction is negative, they do not sum to 1, a group is missing (images of unknown groups are
            not one group), or `labels` and `groups` differ in length.
    """
    shares = np.array(_fractions("group_split", fractions))
    column = read_column(groups, who="group_split", name="groups")
    if column.unknown:
        raise UserError(
            f"group_split: expected a group for every image, got none in {column.describe_unknown()}. "
            "Leave these images out, or give each its own group."
        )
    members = column.codes
    strata = np.zeros(len(members), np.int64) if labels is None else _strata(labels)
    if len(strata) != len(members):
        raise UserError(
            f"group_split: expected one label per image, got {len(members)} groups and {len(strata)} labels. "
            "Give both the same length."
        )
    if not len(members):
        return np.zeros(0, np.int8)
    sizes = np.bincount(members)
    group_strata = _most_frequent(members, strata, len(sizes))
    order = np.lexsort((np.random.default_rng(seed).random(len(sizes)), group_strata))
    split = _fill(sizes, order, shares)
    if shares[TRAIN] > 0:
        _keep_one_for_training(split, group_strata, order)
    return split[members]


def holdout_split(
    codes: npt.ArrayLike,
    held_out: int | Collection[int],
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    labels: npt.ArrayLike | None = None,
) -> SplitCodes:
    """Hold out one value of an attribute, such as a studio, as the test split; the rest is train and val.

    Args:
        codes: The value of each image, as in `mumoe.data.base.Attribute`; -1 (unknown) is never held out.
        held_out: The code, or codes, that become the test split.
        val_fraction: Share of the rest that becomes val.
        seed: Seed of the shuffle.
        labels: What train and val are stratified by; None stratifies by `codes`.

    Shape:
        codes (num_images,); returns (num_images,).

    Raises:
        UserError: If no image or every image has a value that is held out, or the fraction is not in [0, 1).
    """
    values = np.asarray(codes, np.int64)
    wanted = [held_out] if isinstance(held_out, int | np.integer) else sorted(held_out)
    test = np.isin(values, wanted) & (values >= 0)
    if not test.any() or test.all():
        raise UserError(
            f"holdout_split: expected a value that some images have and others do not, got {held_out!r}, "
            f"which {int(test.sum())} of {len(values)} images have. Hold out another one."
        )
    rest = np.where(test, TEST, TRAIN).astype(np.int8)
    return carve(rest, values if labels is None else labels, VAL, fraction=val_fraction, seed=seed)


def carve(split: SplitCodes, labels: npt.ArrayLike, target: int, *, fraction: float, seed: int) -> SplitCodes:
    """Move a stratified part of train into another split: a val for a set that has only train and test.

    Args:
        split: A position in SPLITS per image; it is not changed.
        labels: Class of each image, as for `stratified_split`.
        target: The split that receives them.
        fraction: Share of train that moves.
        seed: Seed of the shuffle.

    Raises:
        UserError: If the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"data: expected a share of the training images in [0, 1), got {fraction}. "
            "Use val_fraction=0.1, for example."
        )
    given = np.flatnonzero(split == TRAIN)
    part = stratified_split(np.asarray(labels)[given], fractions=(1 - fraction, fraction, 0.0), seed=seed)
    result = split.copy()
    result[given[part == VAL]] = target
    return result


def _fractions(who: str, fractions: Sequence[float]) -> tuple[float, float, float]:
    values = [float(fraction) for fraction in fractions]
    if len(values) != 3 or min(values) < 0 or not abs(sum(values) - 1) < 1e-6:
        raise UserError(
            f"{who}: expected three fractions (train, val, test) >= 0 that sum to 1, got {tuple(values)}. "
            "Use (0.7, 0.1, 0.2), for example."
        )
    return values[0], values[1], values[2]


def _strata(labels: npt.ArrayLike) -> Codes:
    """One small integer per image; 0/1 rows become their rarest positive target, or a class of their own."""
    values: npt.NDArray[Any] = np.asarray(labels)
    if values.ndim == 1 and values.dtype.kind == "O":  # missing labels are a stratum of their own
        return read_column(values, name="labels").codes + 1
    if values.ndim == 1:
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
    rarity = np.argsort(np.argsort(values.sum(0), kind="stable"))
    worst = values.shape[1]
    strata: Codes = np.where(values > 0, rarity, worst).min(1, initial=worst).astype(np.int64)
    return strata


def _every(count: int, fraction: float, start: float) -> Codes:
    """Positions of a systematic sample: k positions in a row hold fraction * k of them, up to rounding."""
    steps = np.floor(np.arange(count + 1) * fraction + start)
    return np.flatnonzero(np.diff(steps) > 0).astype(np.int64)


def _keep_one_for_training(split: SplitCodes, strata: Codes, order: Codes) -> None:
    """Move the first image (in random order) of each stratum that train lacks to train."""
    present, first = np.unique(strata[order], return_index=True)
    bare = ~np.isin(present, strata[split == TRAIN])
    split[order[first[bare]]] = TRAIN


def _most_frequent(members: Codes, strata: Codes, groups: int) -> Codes:
    """The most frequent stratum of each group; ties go to the lowest."""
    pairs, counts = np.unique(np.stack([members, strata], 1), axis=0, return_counts=True)
    best = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
    first = np.searchsorted(pairs[best, 0], np.arange(groups))
    strata_of_groups: Codes = pairs[best[first], 1]
    return strata_of_groups


def _fill(sizes: Codes, order: Codes, shares: npt.NDArray[np.float64]) -> SplitCodes:
    """Send each group in turn to the split that lacks most of what it should have by then."""
    split = np.zeros(len(sizes), np.int8)
    lacking = np.zeros(3)
    for group in order:
        lacking += shares * sizes[group]
        split[group] = np.argmax(np.where(shares > 0, lacking, -np.inf))
        lacking[split[group]] -= sizes[group]
    return split
