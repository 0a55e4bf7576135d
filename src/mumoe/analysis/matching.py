"""Experts of two runs matched by what they do: correlations of coefficients, one-to-one matches, and how they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.errors import UserError, require

__all__ = ["MEASURES", "Agreement", "agreement", "column_correlations", "match_experts", "mean_agreement"]

WHO = "Job.stability"

MEASURES = {
    "share": "share of strong experts that reappear",
    "same_class": "matched with a strong expert of the same class",
    "similarity": "correlation of strong experts with their match",
    "similarity_all": "correlation of all matched experts",
}
"""Fields of `Agreement` in words."""

VARIES = 1e-6
"""Standard deviation, as a share of the mean, from which a column varies; rounding alone stays below."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How well the experts of two seeds agree, over the strong experts of both; None where neither has any.

    Attributes:
        share: Share of the strong experts that reappear: their match is strong for the same class, and similar.
        same_class: The same share without the condition on similarity.
        similarity: Mean correlation of the strong experts with their matches.
        similarity_all: Mean correlation of all matched experts that vary in both seeds.
    """

    share: float | None
    same_class: float | None
    similarity: float | None
    similarity_all: float | None


def column_correlations(blocks: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Floats:
    """Pearson's correlation of every column of one table with every column of another, in one pass over their rows.

    Args:
        blocks: Rows of both tables, the same rows, block by block.

    Shape:
        blocks (rows, one) and (rows, other); returns (one, other), 0 where a column does not vary.
    """
    rows, cross, sums, squares = 0, np.zeros(()), [np.zeros(()), np.zeros(())], [np.zeros(()), np.zeros(())]
    for pair in blocks:
        one, other = (np.asarray(table, dtype=np.float64) for table in pair)
        rows, cross = rows + len(one), cross + one.T @ other
        sums = [total + table.sum(0) for total, table in zip(sums, (one, other), strict=True)]
        squares = [total + (table**2).sum(0) for total, table in zip(squares, (one, other), strict=True)]
    if not rows:
        raise UserError(f"{WHO}: expected images to compare experts on, got none.")
    means = [total / rows for total in sums]
    deviations = [np.sqrt(np.maximum(s / rows - m**2, 0)) for s, m in zip(squares, means, strict=True)]
    known = [deviation > VARIES * np.abs(mean) for deviation, mean in zip(deviations, means, strict=True)]
    scale = np.outer(*(np.where(ok, deviation, 1) for ok, deviation in zip(known, deviations, strict=True)))
    found = (cross / rows - np.outer(*means)) / scale
    return np.where(np.outer(*known), np.clip(found, -1, 1), 0.0)


def match_experts(similarity: Floats) -> Ints:
    """(one,) the column that each row is matched with: the one-to-one assignment with the largest sum.

    Shape:
        similarity (one, other) of equal sizes.
    """
    optimize = require("scipy.optimize", "vision", WHO)
    rows, columns = optimize.linear_sum_assignment(similarity, maximize=True)
    matched = np.empty(len(rows), dtype=np.int64)
    matched[rows] = columns
    return matched


def agreement(similarity: Floats, strong: tuple[Ints, Ints], threshold: float) -> tuple[Agreement, Ints]:
    """The measures of two seeds, and the match of every expert of the first.

    Args:
        similarity: (experts, experts).
        strong: Of both seeds, (experts,) class for which each expert is strong, -1 where it is not.
        threshold: Similarity from which experts are alike.
    """
    matched = match_experts(similarity)
    value, classes, others = similarity[np.arange(len(matched)), matched], strong[0], strong[1][matched]
    same = (classes == others) & (classes >= 0)
    weight = (classes >= 0).astype(np.int64) + (others >= 0)
    count = int(weight.sum())
    varies = (similarity != 0).any(1) & (similarity != 0).any(0)[matched]
    found = Agreement(
        share=float(2 * (same & (value >= threshold)).sum() / count) if count else None,
        same_class=float(2 * same.sum() / count) if count else None,
        similarity=float((weight * value).sum() / count) if count else None,
        similarity_all=float(value[varies].mean()) if varies.any() else None,
    )
    return found, matched


def mean_agreement(controls: Sequence[Agreement]) -> Agreement:
    """Means over draws; None where no draw has the measure."""

    def mean(name: str) -> float | None:
        known = [value for found in controls if (value := getattr(found, name)) is not None]
        return sum(known) / len(known) if known else None

    return Agreement(**{name: mean(name) for name in MEASURES})
