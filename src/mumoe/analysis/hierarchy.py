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
from mumoe.analysis.measures import LEAST_LOST, strong_losses
from mumoe.analysis.results import Combination

__all__ = ["and_reading"]


def and_reading(
    levels: Sequence[Interventions], combinations: Interventions, *, least_lost: int = LEAST_LOST
) -> tuple[Combination, ...]:
    """Every strong combination, beside its experts; see `measures.strong_losses` for what a class must lose.

    Args:
        levels: Interventions on the single levels, in order.
        combinations: Interventions on all combinations, of the same images.
        least_lost: Right answers that a class must lose, besides half of them.
    """
    lost = [_lost(level, least_lost) for level in levels]
    joint = _lost(combinations, least_lost)
    sizes = [len(level) for level in lost]
    found = []
    for unit in np.flatnonzero(joint.any(1)):
        experts = tuple(int(n) for n in np.unravel_index(int(unit), sizes))
        rows = [level[n] for level, n in zip(lost, experts, strict=True)]
        found.append(_combination(experts, rows, joint[unit]))
    return tuple(found)


def _lost(interventions: Interventions, least_lost: int) -> npt.NDArray[np.bool_]:
    return strong_losses(interventions.answers.before, interventions.counts(), least_lost)


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
