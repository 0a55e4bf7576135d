"""Statistics that several rooms share: intervals of shares, exact tests of counts, corrections for many comparisons.

Distributions are scipy's; only what has no vectorized form there is written here. Arrays broadcast as in numpy. The
bootstraps live beside what they resample (`analysis.class_effects`, `editing.subgroup_fairness`).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.errors import require

__all__ = [
    "benjamini_hochberg",
    "bootstrap_interval",
    "fisher_less",
    "holm",
    "newcombe",
    "stratified_gap",
    "stratified_less",
    "t_quantile",
    "wilson",
]

Floats = npt.NDArray[np.float64]


def wilson(hits: npt.ArrayLike, total: npt.ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Wilson's score interval of a share hits / total, both ends in [0, 1]; total must be above 0."""
    k, n = np.asarray(hits, dtype=np.float64), np.asarray(total, dtype=np.float64)
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), k / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / scale
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def bootstrap_interval(
    draws: npt.ArrayLike,
    estimate: npt.ArrayLike,
    ends: tuple[float, float] = (0.025, 0.975),
    *,
    moved: bool = False,
) -> tuple[Floats, Floats]:
    """Percentile interval of a bootstrap that always holds its estimate.

    Resampling moves some statistics to one side (a mean of norms, a count above a threshold). If it moves one so far
    that the percentiles exclude the estimate, the basic and BCa intervals exclude it too. Either the interval is
    widened to the estimate, or it is moved by the bias that the bootstrap shows: the distance of the draws' median
    from the estimate. Both cover the mean of the statistic over test sets of this size.

    Args:
        draws: (resamples, ...) the statistic of each resample.
        estimate: (...) the statistic of the data.
        ends: Shares of the draws below the lower and below the upper percentile.
        moved: Move the interval instead of widening it; for statistics whose bias is larger than their spread.

    Returns:
        Lower and upper end, (...).
    """
    value = np.asarray(estimate, dtype=np.float64)
    low, middle, high = np.quantile(np.asarray(draws, dtype=np.float64), [ends[0], 0.5, ends[1]], axis=0)
    if moved:
        return np.asarray(low - middle + value), np.asarray(high - middle + value)
    return np.minimum(low, value), np.maximum(high, value)


def newcombe(
    k: npt.ArrayLike, n: npt.ArrayLike, k_rest: npt.ArrayLike, n_rest: npt.ArrayLike, confidence: float = 0.95
) -> tuple[Floats, Floats]:
    """Newcombe's hybrid score interval of k_rest / n_rest - k / n, sound for small groups and rates of 0 or 1."""
    k, n, k_rest, n_rest = (np.asarray(value, dtype=np.float64) for value in (k, n, k_rest, n_rest))
    a, b = k_rest / n_rest, k / n
    (low_a, high_a), (low_b, high_b) = wilson(k_rest, n_rest, confidence), wilson(k, n, confidence)
    low, high = np.hypot(a - low_a, high_b - b), np.hypot(high_a - a, b - low_b)
    return np.asarray(a - b - low), np.asarray(a - b + high)


def fisher_less(k: npt.ArrayLike, n: npt.ArrayLike, k_rest: npt.ArrayLike, n_rest: npt.ArrayLike) -> Floats:
    """One-sided p-values of Fisher's exact test: could k of n, or fewer, be right by chance?

    Args:
        k: Right answers in the group.
        n: Size of the group.
        k_rest: Right answers outside.
        n_rest: Size of the outside.

    Returns:
        P(K <= k) of the hypergeometric distribution, in (0, 1].
    """
    stats = require("scipy.stats", "vision", "fisher_less")
    k, n, k_rest, n_rest = (np.asarray(value, dtype=np.int64) for value in (k, n, k_rest, n_rest))
    return np.minimum(np.asarray(stats.hypergeom.cdf(k, n + n_rest, k + k_rest, n), dtype=np.float64), 1.0)


def stratified_less(k: npt.ArrayLike, n: npt.ArrayLike, k_rest: npt.ArrayLike, n_rest: npt.ArrayLike) -> float:
    """Fisher's exact test over strata: could sum(k), or fewer, be right by chance, given the margins of each stratum?

    The sum of independent hypergeometric counts, one per stratum, by convolution. One stratum is `fisher_less`.

    Args:
        k, n, k_rest, n_rest: (strata,) as in `fisher_less`.
    """
    stats = require("scipy.stats", "vision", "stratified_less")
    k, n, k_rest, n_rest = (np.asarray(value, dtype=np.int64) for value in (k, n, k_rest, n_rest))
    total = np.ones(1)
    for hits, size, others, rest in zip(k, n, k_rest, n_rest, strict=True):
        if size:
            part = stats.hypergeom.pmf(np.arange(size + 1), size + rest, hits + others, size)
            total = np.convolve(total, part)
    return float(min(total[: int(k.sum()) + 1].sum(), 1.0))


def stratified_gap(
    k: npt.ArrayLike, n: npt.ArrayLike, k_rest: npt.ArrayLike, n_rest: npt.ArrayLike, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Share outside minus share inside a group, with the strata weighted as in the group, and its interval.

    The outside is standardized: its share is the one that it would have with as many rows of each stratum as the group.
    Strata without rows on one side are left out. The interval joins Newcombe's of each stratum by their squared
    distances from it (MOVER; Zou and Donner, 2008); with one stratum it is Newcombe's.

    Args:
        k, n, k_rest, n_rest: (strata,) as in `fisher_less`.
        confidence: Of the interval.

    Returns:
        The difference in [-1, 1], and the ends of its interval; NaN if no stratum has rows on both sides.
    """
    k, n, k_rest, n_rest = (np.asarray(value, dtype=np.float64) for value in (k, n, k_rest, n_rest))
    both = (n > 0) & (n_rest > 0)
    if not both.any():
        return float("nan"), float("nan"), float("nan")
    k, n, k_rest, n_rest = k[both], n[both], k_rest[both], n_rest[both]
    weight, gap = n / n.sum(), k_rest / n_rest - k / n
    low, high = newcombe(k, n, k_rest, n_rest, confidence)
    value = float(weight @ gap)
    below, above = (float(np.sqrt((weight**2 * (end - gap) ** 2).sum())) for end in (low, high))
    return value, max(value - below, -1.0), min(value + above, 1.0)


def holm(p: npt.ArrayLike) -> Floats:
    """Holm's corrected p-values (family-wise error rate)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def benjamini_hochberg(p: npt.ArrayLike) -> Floats:
    """Benjamini and Hochberg's corrected p-values (false discovery rate)."""
    stats: Any = require("scipy.stats", "vision", "benjamini_hochberg")
    return np.asarray(stats.false_discovery_control(np.asarray(p, dtype=np.float64)), dtype=np.float64)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t with `degrees` degrees of freedom."""
    special = require("scipy.special", "vision", "t_quantile")
    return float(special.stdtrit(degrees, probability))
