"""Images that represent an expert: for each expert, some that it processes (Figures 2, 7 and 8).

An expert processes an image when its coefficient is at least a half. Some of these images are drawn at random
(seeded), so that they are typical rather than hand-picked; others have the largest coefficients. Experts without any
such image are skipped and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mumoe.analysis.coefficient_store import CoefficientLevel, Pairs
from mumoe.errors import UserError

if TYPE_CHECKING:
    from mumoe.data.base import ImageData

__all__ = ["ChosenImages", "choose_combination_images", "choose_images", "image_label", "largest_products"]

Column = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Rows, and a coefficient of each."""


@dataclass(frozen=True)
class ChosenImages:
    """For each (expert, rank): an image and its coefficient, ordered by `key` within the expert."""

    expert: npt.NDArray[np.int64]
    image: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    key: npt.NDArray[np.float64]


def choose_images(
    level: CoefficientLevel,
    *,
    each: int = 6,
    threshold: float = 0.5,
    seed: int = 0,
    experts: Sequence[int] | None = None,
) -> tuple[dict[int, tuple[ChosenImages, ChosenImages]], npt.NDArray[np.int64]]:
    """Images to show per expert: random ones and top ones among those at or above the threshold.

    The draw depends on the seed, the image and the expert alone, not on the order of reading.

    Returns:
        (random, top) by expert, for experts that process any image; and (num_experts,) images processed.

    Raises:
        UserError: If an expert does not exist.
    """
    wanted = range(level.num_experts) if experts is None else experts
    for expert in wanted:
        if not 0 <= expert < level.num_experts:
            raise UserError(
                f"choose_images: expected an expert from 0 to {level.num_experts - 1}, got {expert}. "
                "Count experts from 0."
            )
    count = np.zeros(level.num_experts, dtype=np.int64)
    none = np.zeros(0, dtype=np.int64)
    drawn = best = ChosenImages(none, none, none.astype(np.float32), none.astype(np.float64))
    for block in level.blocks():
        part = _processed(block, threshold, level.rows_per_image)
        count += np.bincount(part.expert, minlength=level.num_experts)
        drawn = _keep(drawn, part, _random_keys(part, seed), each)
        best = _keep(best, part, -part.value.astype(np.float64), each)
    found = {n: (_of(drawn, n), _of(best, n)) for n in wanted if count[n]}
    return found, count


def choose_combination_images(
    levels: Sequence[CoefficientLevel], combinations: Sequence[tuple[int, ...]], *, each: int = 6
) -> list[ChosenImages]:
    """Images of combinations of one expert per level: those with the largest products of coefficients.

    Args:
        levels: The coefficients of every level, of a layer with one row per image.
        combinations: One expert of every level each.
        each: Images of each combination at most.

    Returns:
        Of each combination its images, the largest product first; `expert` is its place among `combinations`.
    """
    columns = [_columns(level, {c[n] for c in combinations}) for n, level in enumerate(levels)]
    found = []
    for place, experts in enumerate(combinations):
        image, value = largest_products([level[n] for level, n in zip(columns, experts, strict=True)], each)
        found.append(ChosenImages(np.full(len(image), place), image, value, -value.astype(np.float64)))
    return found


def largest_products(columns: Sequence[Column], each: int) -> Column:
    """The rows that all experts of a combination share with the largest products of their coefficients, largest first.

    Args:
        columns: Of one expert per level, its rows, ascending, and its coefficients there.
        each: Rows at most.
    """
    row, value = columns[0]
    for other, factor in columns[1:]:
        row, mine, theirs = np.intersect1d(row, other, assume_unique=True, return_indices=True)
        value = value[mine] * factor[theirs]
    order = np.lexsort((row, -value))[:each]
    return row[order], value[order]


def _columns(level: CoefficientLevel, experts: set[int]) -> dict[int, Column]:
    """Rows with a coefficient above 0, ascending, and the coefficients, of some experts."""
    wanted = np.array(sorted(experts), dtype=np.int64)
    parts = []
    for block in level.blocks():
        mine = np.isin(block.expert, wanted) & (block.value > 0)
        parts.append((block.expert[mine], block.row[mine], block.value[mine]))
    expert, row, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {n: (row[expert == n], value[expert == n]) for n in wanted.tolist()}


def _processed(block: Pairs, threshold: float, rows_per_image: int) -> Pairs:
    """The pairs at or above the threshold with images for rows; of an image's tokens the largest counts."""
    chosen = np.flatnonzero(block.value >= threshold)
    image, expert = block.row[chosen] // rows_per_image, block.expert[chosen]
    order = np.lexsort((-block.value[chosen], expert, image))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(image[order]) != 0) | (np.diff(expert[order]) != 0)
    kept = order[first]
    return Pairs(image[kept], expert[kept], block.value[chosen][kept])


def _random_keys(part: Pairs, seed: int) -> npt.NDArray[np.float64]:
    """A random number for each (row, expert, seed): the splitmix64 hash of the three."""
    with np.errstate(over="ignore"):
        start = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(1)
        mixed = part.row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        mixed ^= part.expert.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).astype(np.float64)


def _keep(kept: ChosenImages, part: Pairs, key: npt.NDArray[np.float64], each: int) -> ChosenImages:
    """The `each` smallest keys of every expert, among those kept so far and this part."""
    expert = np.concatenate([kept.expert, part.expert])
    image = np.concatenate([kept.image, part.row])
    value = np.concatenate([kept.value, part.value])
    keys = np.concatenate([kept.key, key])
    order = np.lexsort((image, keys, expert))
    ordered = expert[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    chosen = order[rank < each]
    return ChosenImages(expert[chosen], image[chosen], value[chosen], keys[chosen])


def _of(kept: ChosenImages, expert: int) -> ChosenImages:
    mine = kept.expert == expert
    return ChosenImages(kept.expert[mine], kept.image[mine], kept.value[mine], kept.key[mine])


def image_label(data: ImageData, image: int) -> str:
    """Name of an image's class, or the names of its targets."""
    if not data.multi_label:
        return data.classes[int(data.labels[image])]
    return ", ".join(name for name, on in zip(data.classes, data.labels[image], strict=True) if on) or "none"
