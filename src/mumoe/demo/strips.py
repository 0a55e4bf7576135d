"""The experts that the demo's card shows: the images that are read wrongly without each of them.

The purest strong experts are shown, chosen for being that; so a typical expert and a unit of the control stand beside
them, by the same rule: images whose right answer is lost when the unit is ablated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mumoe.analysis.class_effects import Answers, Changes, counts_after
from mumoe.analysis.findings import UnitStudy
from mumoe.analysis.highlights import choose_highlights
from mumoe.analysis.outcomes import Interventions

__all__ = ["CONTROL", "IMAGES", "PUREST", "TYPICAL", "Strip", "choose_strips"]

PUREST, TYPICAL, CONTROL = "purest", "typical", "control"
IMAGES = 6
"""Images of a strip at most."""


@dataclass(frozen=True)
class Strip:
    """One unit and what is lost without it.

    Attributes:
        kind: ``purest``, ``typical`` or ``control``.
        unit: Its position; that of a control is a position among the control's units.
        top: Name of the class that loses most.
        lost: Right answers of that class that are lost.
        right: Right answers of that class before.
        others: Right answers that all other classes lose.
        images: Positions in the data of images whose right answer is lost, those of `top` first.
    """

    kind: str
    unit: int
    top: str
    lost: int
    right: int
    others: int
    images: tuple[int, ...]


def choose_strips(
    units: UnitStudy,
    interventions: Interventions,
    classes: Sequence[str],
    rows: npt.NDArray[np.int64],
    *,
    most: int = 4,
    seed: int = 0,
) -> tuple[Strip, ...]:
    """Up to `most` purest strong experts, a typical one, and a unit of the control.

    Args:
        units: The study of a level.
        interventions: What it was made from.
        classes: Names of the classes.
        rows: (images,) position in the data of each image.
        most: Strong experts at most.
        seed: Seed with which the study dealt its control.
    """
    chosen = choose_highlights(units, most=most)
    answers, changes = interventions.answers, interventions.changes
    picked = [(PUREST, unit, changes) for unit in chosen.purest]
    if chosen.typical is not None:
        picked.append((TYPICAL, chosen.typical, changes))
    if chosen.control is not None:
        dealt = interventions.shuffled(seed=seed)
        picked.append((CONTROL, chosen.control.unit, dealt))
    return tuple(_strip(kind, unit, answers, found, classes, rows) for kind, unit, found in picked)


def _strip(
    kind: str,
    unit: int,
    answers: Answers,
    changes: Changes,
    classes: Sequence[str],
    rows: npt.NDArray[np.int64],
) -> Strip:
    before = answers.before
    lost = before - counts_after(answers, changes)[unit]
    share = np.where(before > 0, lost / np.maximum(before, 1), -np.inf)
    top = int(np.lexsort((-lost, -share))[0])
    mine = (changes.unit == unit) & (changes.sign < 0)
    image, label = changes.image[mine], changes.label[mine]
    order = np.lexsort((image, label != top))
    shown = tuple(int(row) for row in rows[image[order]][:IMAGES])
    own = int((label == top).sum())
    return Strip(kind, unit, classes[top], own, int(before[top]), len(label) - own, shown)
