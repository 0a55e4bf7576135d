"""Which answers each ablation changes, gathered batch by batch, and when an answer is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.analysis.class_effects import Answers, Changes, counts_after, shuffle_units, specialization
from mumoe.analysis.findings import Specialization
from mumoe.analysis.settings import LEAST_LOST
from mumoe.errors import UserError

__all__ = ["ROUNDING", "Batches", "Interventions", "Record", "Rest", "check_labels", "is_right", "margin"]

Batches = Iterable[tuple[Tensor, Tensor]]
Rest = Callable[[Tensor], Tensor]

ROUNDING = 16.0
"""Decisions closer than this many float epsilons of the terms' size are made by the plain method."""

PENDING = 1_000_000
"""Loads of single batches that are kept before they are added."""


@dataclass(frozen=True)
class Interventions:
    """The outcome of ablating every unit of a layer in isolation.

    Attributes:
        answers: Right answers before.
        changes: Every answer that some ablation changes.
        load: (occurring,) images to which each unit contributes.
        silent: Pairs of image and unit after whose ablation every logit is exactly 0. The plain method, whose argmax
            picks the first of equals, then answers with class 0; so does this.
        rechecked: Batches evaluated once more by the plain method because rounding could have decided.
        occurring: (occurring,) ascending positions of the units that contribute to an image: of a million combinations
            of experts few do. None where `load` is that of every unit.
    """

    answers: Answers
    changes: Changes
    load: npt.NDArray[np.int64]
    silent: int = 0
    rechecked: int = 0
    occurring: npt.NDArray[np.int64] | None = None

    def all_loads(self) -> npt.NDArray[np.int64]:
        """(units,) images to which each unit contributes, those without any included."""
        if self.occurring is None:
            return self.load
        found = np.zeros(self.changes.num_units, dtype=np.int64)
        found[self.occurring] = self.load
        return found

    def counts(self) -> npt.NDArray[np.int64]:
        """Right answers per unit and class after the unit's ablation, (units, classes)."""
        return counts_after(self.answers, self.changes)

    def specialization(self, **settings: Any) -> Specialization:
        """The measures of eq. 5; settings as for `class_effects.specialization`."""
        return specialization(self.answers, self.changes, **settings)

    def load_control(self, *, seed: int = 0, least_lost: int = LEAST_LOST) -> Specialization:
        """The same measures, by the same rules, for units of the same load made up of random contributions."""
        return specialization(self.answers, self.shuffled(seed=seed), least_lost=least_lost)

    def shuffled(self, *, seed: int = 0) -> Changes:
        """The changes of units of the same load made up of random contributions."""
        return shuffle_units(self.changes, self.load, units=self.occurring, seed=seed)


@dataclass
class Record:
    """Answers and changes as they are found, batch by batch."""

    num_units: int
    labels: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    changes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    loads: list[npt.NDArray[np.int64]] = field(default_factory=lambda: [np.zeros((2, 0), dtype=np.int64)])
    silent: int = 0
    rechecked: int = 0
    images: int = 0
    classes: int = 0

    def batch(self, labels: Tensor, right: Tensor, classes: int) -> int:
        """Note the answers before any intervention; returns the position of the batch's first image."""
        first, self.images, self.classes = self.images, self.images + len(labels), classes
        self.labels.append(labels.cpu())
        self.right.append(right.cpu())
        return first

    def changed(self, first: int, row: Tensor, unit: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> None:
        """Note pairs whose answer differs from the one before; before and after are (pairs,) or (pairs, C)."""
        differs = (before != after).nonzero(as_tuple=True)
        pair = differs[0]
        label = labels[row[pair]] if before.ndim == 1 else differs[1]
        sign = after[differs].long() - before[differs].long()
        table = torch.stack([row[pair] + first, unit[pair], label, sign])
        if len(pair):
            self.changes.append(table.cpu().numpy())

    def whole_batch(self, first: int, unit: int, labels: Tensor, before: Tensor, logits: Tensor) -> None:
        """Note the logits of a whole batch with one unit ablated."""
        rows = torch.arange(len(labels), device=labels.device)
        self.changed(first, rows, torch.full_like(rows, unit), labels, before, is_right(logits, labels))

    def loaded(self, unit: Tensor) -> None:
        """Note the units that contribute to a batch, once for each image."""
        found, counts = unit.unique(return_counts=True)
        self.loads.append(torch.stack([found, counts]).cpu().numpy())
        if sum(part.shape[1] for part in self.loads[1:]) > max(PENDING, self.loads[0].shape[1]):
            self.loads = [_added(self.loads)]

    def result(self) -> Interventions:
        if not self.images:
            raise UserError("intervene: expected at least one image, got none. Choose a split that has images.")
        labels, right = torch.cat(self.labels).numpy(), torch.cat(self.right).numpy()
        table = np.concatenate(self.changes, axis=1) if self.changes else np.zeros((4, 0), dtype=np.int64)
        answers = Answers(None if labels.ndim == 2 else labels.astype(np.int64), right, self.classes)
        changes = Changes(table[0], table[1], table[2], table[3], self.num_units)
        occurring, load = _added(self.loads)
        return Interventions(answers, changes, load, self.silent, self.rechecked, occurring)


def _added(loads: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """(2, units) ascending units and their loads, from several such tables."""
    unit, load = np.concatenate(loads, axis=1)
    units, position = np.unique(unit, return_inverse=True)
    return np.stack([units, np.bincount(position, weights=load, minlength=len(units)).astype(np.int64)])


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) for classes, the first of equal logits winning; (rows, targets) for 0/1 targets, above 0 is 1."""
    return logits.argmax(1) == labels if labels.ndim == 1 else (logits > 0) == (labels > 0)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) how far the closest decision about right or wrong is from changing."""
    if labels.ndim == 2:
        return logits.abs().amin(1)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (own[:, 0] - others).abs()


def check_labels(labels: Tensor, logits: Tensor) -> None:
    classes = logits.shape[-1]
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UserError(
            f"intervene: expected labels of {classes} targets, got {labels.shape[1]}. Use the data it was trained on."
        )
    if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"intervene: expected labels in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}. "
            "Use the data it was trained on."
        )
