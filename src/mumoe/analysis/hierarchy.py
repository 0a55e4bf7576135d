"""The "and" of a hierarchy: does a combination of experts answer for what all of its experts answer for?

With two levels an image is processed by expert n of the first and expert m of the second: their combination
(n, m) has a weight of its own and answers, on this reading (paper, section 1 and appendix C), for images that are
both "n" and "m". Here that reading is checked by intervention. Ablating n with all of its combinations costs some
classes their accuracy, and so does ablating m; where the reading holds, the combination costs the classes that
are in both sets and no others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mumoe.analysis.interventions import Interventions
from mumoe.analysis.measures import differences
from mumoe.analysis.results import Combination

__all__ = ["and_reading"]


def and_reading(
    levels: Sequence[Interventions], combinations: Interventions, *, threshold: float = 0.5
) -> tuple[Combination, ...]:
    """Every combination that costs some class at least `threshold` of its right answers, beside its experts.

    Args:
        levels: Interventions on the single levels, in order.
        combinations: Interventions on all combinations, of the same images.
        threshold: Share of its right answers that a class must lose to count as answered for.
    """
    lost = [_lost(level) >= threshold for level in levels]
    joint = _lost(combinations) >= threshold
    sizes = [len(level) for level in lost]
    found = []
    for unit in np.flatnonzero(joint.any(1)):
        experts = tuple(int(n) for n in np.unravel_index(int(unit), sizes))
        rows = [level[n] for level, n in zip(lost, experts, strict=True)]
        found.append(_combination(experts, rows, joint[unit]))
    return tuple(found)


def _lost(interventions: Interventions) -> npt.NDArray[np.float64]:
    d = differences(interventions.answers.before, interventions.counts())
    return np.where(np.isnan(d), -np.inf, d)


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
