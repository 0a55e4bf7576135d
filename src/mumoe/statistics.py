"""Statistics that several rooms share: intervals of shares, exact tests of counts, corrections for many comparisons.

Distributions are scipy's; what is written here has no vectorized form there. Arrays broadcast as in numpy. The
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


def newcombe(k: int, n: int, k_rest: int, n_rest: int, confidence: float = 0.95) -> tuple[float, float]:
    """Newcombe's hybrid score interval of k_rest / n_rest - k / n, sound for small groups and rates of 0 or 1."""
    a, b = k_rest / n_rest, k / n
    (low_a, high_a), (low_b, high_b) = wilson(k_rest, n_rest, confidence), wilson(k, n, confidence)
    low, high = np.hypot(a - low_a, high_b - b), np.hypot(high_a - a, b - low_b)
    return float(a - b - low), float(a - b + high)


def fisher_less(k: npt.ArrayLike, n: npt.ArrayLike, k_rest: npt.ArrayLike, n_rest: npt.ArrayLike) -> Floats:
    """One-sided p-values of Fisher's exact test: are as few as k of n right by chance?

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
    """Fisher's exact test over strata: are as few as sum(k) right by chance, given what is right in every stratum?

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
    """Mantel and Haenszel's difference of shares outside and inside a group over strata, with its interval.

    Strata without rows on one side are left out. The variance is Greenland and Robins'.

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
    weight, inside, outside = n * n_rest / (n + n_rest), k / n, k_rest / n_rest
    value = float((weight * (outside - inside)).sum() / weight.sum())
    variance = (weight**2 * (inside * (1 - inside) / n + outside * (1 - outside) / n_rest)).sum() / weight.sum() ** 2
    half = NormalDist().inv_cdf((1 + confidence) / 2) * float(np.sqrt(variance))
    return value, max(value - half, -1.0), min(value + half, 1.0)


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
