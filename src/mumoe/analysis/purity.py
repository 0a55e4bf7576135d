"""Accuracy and specialization of one head on some images, beside its control: what `stability` and `shift` compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mumoe.analysis.analyzing import layer_batches
from mumoe.analysis.class_effects import counts_after, strong_classes
from mumoe.analysis.contributions import ABLATABLE
from mumoe.analysis.interventions import intervene
from mumoe.analysis.outcomes import Interventions, Record, is_right
from mumoe.analysis.settings import LEAST_LOST
from mumoe.models.heads import Head
from mumoe.modes import evaluating
from mumoe.training.inputs import Inputs

__all__ = ["Measured", "Purity", "measure_purity"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Purity:
    """Accuracy of a head on some images, and how specialized its experts are there.

    Numbers of experts are None for a head without any.

    Attributes:
        images: Number of images.
        accuracy: Share of right answers.
        polysemanticity: Mean p of the experts with an effect; None if there are none.
        control_polysemanticity: The same of units of the same load made up of random contributions.
        strong: Strong experts.
        control_strong: Strong units of the control.
        strong_images: Distinct images behind the strong experts.
    """

    images: int
    accuracy: float
    polysemanticity: float | None = None
    control_polysemanticity: float | None = None
    strong: int | None = None
    control_strong: int | None = None
    strong_images: int | None = None

    def row(self) -> dict[str, Any]:
        """Its columns of a table."""
        return dict(vars(self))


@dataclass(frozen=True)
class Measured:
    """A `Purity` with what it counts.

    Attributes:
        purity: The numbers.
        right: (classes,) right answers of each class.
        strong: (units,) class for which each expert is strong, -1 where it is not; empty for a head without experts.
        control: The same of the control's units.
    """

    purity: Purity
    right: Ints
    strong: Ints
    control: Ints


def measure_purity(
    head: Head,
    inputs: Inputs,
    rows: Ints,
    *,
    level: int = 0,
    least_lost: int = LEAST_LOST,
    seed: int = 0,
    batch_size: int = 500,
) -> Measured:
    """Ablate every expert of one level of a head on some images.

    Args:
        head: A head on features.
        inputs: Its data, with features.
        rows: Positions of the images.
        level: Level of a hierarchy.
        least_lost: An expert is strong if a class loses at least this many right answers, and at least half of them.
        seed: Seed of the control.
        batch_size: Images at a time.

    Raises:
        UserError: If there are no images, or no such level.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return layer_batches(head, inputs, rows, batch_size)

    if not isinstance(head.layer, ABLATABLE):
        return _accuracy(head, batches(), len(inputs.data.classes))
    hierarchy = len(getattr(head.layer, "num_experts", ())) > 1
    rest = None if head.classifier is None else head.finish
    found = intervene(head.layer, batches(), level=level if hierarchy else None, rest=rest)
    return _measured(found, least_lost, seed)


def _measured(found: Interventions, least_lost: int, seed: int) -> Measured:
    own = found.specialization(least_lost=least_lost)
    control = found.load_control(seed=seed, least_lost=least_lost)
    before = found.answers.before
    shuffled = found.shuffled(seed=seed)
    purity = Purity(
        images=own.images,
        accuracy=own.accuracy,
        polysemanticity=own.mean_polysemanticity,
        control_polysemanticity=control.mean_polysemanticity,
        strong=own.strong,
        control_strong=control.strong,
        strong_images=own.strong_images,
    )
    strong = strong_classes(before, found.counts(), least_lost)
    return Measured(purity, before, strong, strong_classes(before, counts_after(found.answers, shuffled), least_lost))


def _accuracy(head: Head, batches: Iterator[tuple[Tensor, Tensor]], classes: int) -> Measured:
    """A head without experts."""
    record, nothing = Record(0), np.zeros(0, dtype=np.int64)
    with evaluating(head):
        for x, labels in batches:
            record.batch(labels, is_right(head.finish(head.layer(x)), labels), classes)
    answers = record.result().answers
    return Measured(Purity(len(answers.right), float(answers.right.mean())), answers.before, nothing, nothing)
