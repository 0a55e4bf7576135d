"""What would be lost without each expert: all interventions in one pass over the data.

The plain way to ask it (`intervene_plainly`) evaluates the model once per expert with that expert's weight at
zero. `intervene` gives the same counts of right answers for every class and expert from one evaluation:

1. Only rows whose coefficient for expert n is above 0 can change, and they change by exactly a_n W_n z.
2. Most of these cannot change enough. With v the part of the latent that leaves (see `contributions`), logit c
   moves against logit j by at most ||v|| ||O_c - O_j||, so an answer stands while that is below the gap of the
   two logits. Each row has one number, the largest ||v|| that provably changes nothing; pairs below it are done.
3. The rest is computed: with many classes first against the closest rivals of the label alone. A rival that
   wins decides, and so does the label if it beats them all and the bound of 2 covers the other classes.
4. Where a decision hangs on less than rounding error could move, the plain method is asked about that batch and
   expert, so that even ties fall as they would there.

For a layer that is not the last one, the affected rows alone are run again from that layer on (`inside`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.analysis.capturing import evaluating
from mumoe.analysis.contributions import Mode, Opened, Parts, parts_of
from mumoe.analysis.measures import LEAST_LOST, Answers, Changes, counts_after, shuffle_units, specialization
from mumoe.analysis.results import Specialization
from mumoe.errors import UserError

__all__ = [
    "ROUNDING",
    "Batches",
    "Interventions",
    "Record",
    "Rest",
    "check_labels",
    "intervene",
    "intervene_plainly",
    "is_right",
    "margin",
]

Batches = Iterable[tuple[Tensor, Tensor]]
Rest = Callable[[Tensor], Tensor]

ROUNDING = 16.0
"""Decisions closer than this many float epsilons of the terms' size are taken by the plain method."""

RIVALS, MANY_CLASSES = 4, 256
"""From how many classes on the closest rivals are tried first, and how many of them."""

BLOCK = 4_000_000
"""Numbers held at once while pairs are computed."""


@dataclass(frozen=True)
class Interventions:
    """The outcome of ablating every unit of a layer in isolation.

    Attributes:
        answers: Right answers before.
        changes: Every answer that some ablation changes.
        load: (units,) images to which each unit contributes.
        silent: Pairs of image and unit after whose ablation every logit is exactly 0. The plain method, whose
            argmax takes the first of equals, then answers with class 0; so does this.
        rechecked: Batches evaluated once more by the plain method because rounding could have decided.
    """

    answers: Answers
    changes: Changes
    load: npt.NDArray[np.int64]
    silent: int = 0
    rechecked: int = 0

    def counts(self) -> npt.NDArray[np.int64]:
        """Right answers per unit and class after the unit's ablation, (units, classes)."""
        return counts_after(self.answers, self.changes)

    def specialization(self, *, resamples: int = 0, seed: int = 0, least_lost: int = LEAST_LOST) -> Specialization:
        """The measures of eq. 5; see `measures.specialization`."""
        return specialization(self.answers, self.changes, resamples=resamples, seed=seed, least_lost=least_lost)

    def load_control(self, *, seed: int = 0, least_lost: int = LEAST_LOST) -> Specialization:
        """The same measures, by the same rules, for units of the same load made up of random contributions."""
        shuffled = shuffle_units(self.changes, self.load, seed=seed)
        return specialization(self.answers, shuffled, least_lost=least_lost)


@dataclass
class Record:
    """Answers and changes as they are found, batch by batch."""

    num_units: int
    labels: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    changes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    load: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
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

    def loaded(self, unit: Tensor) -> None:
        counts = torch.bincount(unit, minlength=self.num_units).cpu().numpy()
        self.load = counts if not len(self.load) else self.load + counts

    def result(self, who: str) -> Interventions:
        if not self.images:
            raise UserError(f"{who}: expected at least one image, got none. Choose a split that has images.")
        labels, right = torch.cat(self.labels).numpy(), torch.cat(self.right).numpy()
        table = np.concatenate(self.changes, axis=1) if self.changes else np.zeros((4, 0), dtype=np.int64)
        answers = Answers(None if labels.ndim == 2 else labels.astype(np.int64), right, self.classes)
        changes = Changes(table[0], table[1], table[2], table[3], self.num_units)
        return Interventions(answers, changes, self.load.astype(np.int64), self.silent, self.rechecked)


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) for classes, the first of equal logits winning; (rows, targets) for 0/1 targets, above 0 is 1."""
    return logits.argmax(1) == labels if labels.ndim == 1 else (logits > 0) == (labels > 0)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(rows,) how far the closest decision about right or wrong is from falling the other way."""
    if labels.ndim == 2:
        return logits.abs().amin(1)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (own[:, 0] - others).abs()


def check_labels(labels: Tensor, logits: Tensor, who: str) -> None:
    classes = logits.shape[-1]
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise UserError(
            f"{who}: expected labels of {classes} targets, got {labels.shape[1]}. Use the data it was trained on."
        )
    if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"{who}: expected labels in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}. "
            "Use the data it was trained on."
        )


# A layer whose output is the model's output, or goes through `rest`


def intervene(
    layer: nn.Module,
    batches: Batches,
    *,
    level: int | None = None,
    mode: Mode = "zero",
    rest: Rest | None = None,
    seed: int = 0,
) -> Interventions:
    """Ablate every unit of a layer in isolation, in one pass over the data.

    The layer is not in a network here: the batches hold its own inputs (cached features, or what
    `inside.intervene_inside` captures). The result equals `intervene_plainly` on the same batches.

    Args:
        layer: A MuMoE, SparseMoE or HighRankLinear layer.
        batches: (x, labels): x (rows, in_features); labels (rows,) classes or (rows, targets) 0/1.
        level: Level whose experts are ablated, each with all of its combinations; None takes the only level,
            or in a hierarchy every combination.
        mode: What takes an ablated expert's place, see `contributions.MODES`.
        rest: The network after the layer, from its output to the logits; None for a final layer.
        seed: Seed of the ``resampled`` mode.

    Raises:
        UserError: If there are no images, a label does not exist, or the layer has no such level or mode.

    Cost: one evaluation, plus width * out_features for each (row, unit) pair that could change an answer.
    """
    with evaluating(layer):
        parts = parts_of(layer, level=level, mode=mode, seed=seed)
        record = Record(parts.num_units)
        distances, norms = parts.distances(), parts.norms()
        for x, labels in batches:
            opened = parts.open(x, record.images)
            logits = opened.logits if rest is None else rest(opened.logits)
            check_labels(labels, logits, "intervene")
            step = _Step(parts, opened, logits, labels, x, rest, record)
            step.run(distances.to(logits), norms.to(logits))
        return record.result("intervene")


@dataclass
class _Step:
    """One batch of `intervene`."""

    parts: Parts
    opened: Opened
    logits: Tensor
    labels: Tensor
    x: Tensor
    rest: Rest | None
    record: Record

    def run(self, distances: Tensor, norms: Tensor) -> None:
        self.tolerance = self._tolerance()
        right = is_right(self.logits, self.labels)
        if bool((margin(self.logits, self.labels) <= self.tolerance).any()):
            right = is_right(self._plain(None), self.labels)
        self.right = right
        self.first = self.record.batch(self.labels, right, self.logits.shape[1])
        self.record.loaded(self.opened.unit)
        self.doubtful: list[Tensor] = []
        self.outcome: list[tuple[Tensor, Tensor]] = []
        candidates = self._candidates(distances, norms)
        size = max(1, BLOCK // max(self.parts.width, self.parts.out_features))
        for pairs in candidates.split(size):
            self._compute(pairs)
        self._silent()
        self._settle()

    def _tolerance(self) -> Tensor:
        """(rows,) what rounding could do to a difference of two logits."""
        scale = self.opened.scale if self.rest is None else self.logits.abs().amax(1)
        bits = ROUNDING if self.rest is None else 32 * ROUNDING
        return scale * (bits * torch.finfo(self.logits.dtype).eps)

    def _plain(self, unit: int | None) -> Tensor:
        self.record.rechecked += 1
        y = self.parts.plain(self.x, unit, self.first if unit is not None else self.record.images)
        return y if self.rest is None else self.rest(y)

    def _candidates(self, distances: Tensor, norms: Tensor) -> Tensor:
        """Positions of the pairs that could change an answer."""
        pairs = (~self.opened.silent).nonzero()[:, 0]
        if self.rest is not None:
            return pairs
        limit = self._limits(distances, norms)
        self._find_rivals(distances)
        kept = []
        for block in pairs.split(max(1, BLOCK // self.parts.width)):
            reach, row = self.opened.reach(block), self.opened.row[block]
            chosen = ~(reach < limit[row])
            kept.append(self._try_rivals(block[chosen], reach[chosen]))
        return torch.cat(kept) if kept else pairs

    def _find_rivals(self, distances: Tensor) -> None:
        """The label's closest rivals of each row, and the reach below which no other class can win."""
        self.rivals: Tensor | None = None
        matrix = self.parts.output()
        if matrix is None or self.labels.ndim == 2 or self.logits.shape[1] < MANY_CLASSES:
            return
        label = self.labels[:, None]
        own = self.logits.gather(1, label)
        self.rivals = self.logits.scatter(1, label, -torch.inf).topk(RIVALS, dim=1).indices
        far = distances[self.labels].clamp(min=torch.finfo(self.logits.dtype).tiny)
        ahead = (own - self.logits - self.tolerance[:, None]) / far
        ahead.scatter_(1, label, torch.inf).scatter_(1, self.rivals, torch.inf)
        self.beyond = ahead.amin(1).nan_to_num(0.0, posinf=torch.inf) * (1 - 1e-3)
        self.lead = own - self.logits.gather(1, self.rivals)
        self.towards = matrix[self.labels][:, None] - matrix[self.rivals]

    def _try_rivals(self, pairs: Tensor, reach: Tensor) -> Tensor:
        """Settle what the rivals alone decide; returns the pairs that are left."""
        if self.rivals is None:
            return pairs
        left = []
        size = max(1, BLOCK // (RIVALS * self.parts.width))
        for part, far in zip(pairs.split(size), reach.split(size), strict=True):
            row = self.opened.row[part]
            moved = torch.bmm(self.towards[row], self.opened.vectors(part).unsqueeze(2)).squeeze(2)
            closest = (self.lead[row] - moved).amin(1)
            loses = closest < -self.tolerance[row]
            wins = (closest > self.tolerance[row]) & (far < self.beyond[row])
            self.outcome += [(part[loses], torch.zeros_like(loses[loses])), (part[wins], wins[wins])]
            left.append(part[~(loses | wins)])
        return torch.cat(left) if left else pairs

    def _limits(self, distances: Tensor, norms: Tensor) -> Tensor:
        """(rows,) reach below which no answer of the row can change."""
        slack = self.tolerance[:, None]
        if self.labels.ndim == 2:
            return ((self.logits.abs() - slack) / norms).nan_to_num(0.0).amin(1)
        own = self.logits.gather(1, self.labels[:, None])
        far = distances[self.labels].clamp(min=torch.finfo(self.logits.dtype).tiny)
        ahead = ((own - self.logits) - slack) / far
        ahead.scatter_(1, self.labels[:, None], torch.inf)
        behind = ((self.logits - own) - slack) / far
        behind.scatter_(1, self.labels[:, None], -torch.inf)
        limit = torch.where(self.right, ahead.amin(1), behind.amax(1))
        return limit.nan_to_num(0.0, posinf=torch.inf) * (1 - 1e-3)

    def _compute(self, pairs: Tensor) -> None:
        row = self.opened.row[pairs]
        y = self.opened.logits[row] - self.parts.project(self.opened.vectors(pairs))
        after = y if self.rest is None else self.rest(y)
        labels = self.labels[row]
        self.outcome.append((pairs, is_right(after, labels)))
        self.doubtful.append(pairs[margin(after, labels) <= self.tolerance[row]])

    def _silent(self) -> None:
        """Where nothing contributes any more the layer's output is exactly zero."""
        pairs = self.opened.silent.nonzero()[:, 0]
        self.record.silent += len(pairs)
        if not len(pairs):
            return
        nothing = torch.zeros_like(self.opened.logits[:1])
        logits = (nothing if self.rest is None else self.rest(nothing)).expand(len(pairs), -1)
        labels = self.labels[self.opened.row[pairs]]
        self.outcome.append((pairs, is_right(logits, labels)))
        if self.rest is not None:
            near = margin(logits, labels) <= self.tolerance[self.opened.row[pairs]]
            self.doubtful.append(pairs[near])

    def _settle(self) -> None:
        """Record the outcomes; where one is in doubt, take all of that unit's from the plain method."""
        doubtful = torch.cat(self.doubtful) if self.doubtful else self.opened.unit[:0]
        units = self.opened.unit[doubtful].unique()
        for pairs, after in self.outcome:
            row, unit = self.opened.row[pairs], self.opened.unit[pairs]
            sure = ~torch.isin(unit, units)
            before = self.right[row[sure]]
            self.record.changed(self.first, row[sure], unit[sure], self.labels, before, after[sure])
        rows = torch.arange(len(self.labels), device=self.labels.device)
        for unit in units.tolist():
            after = is_right(self._plain(unit), self.labels)
            whose = torch.full_like(rows, unit)
            self.record.changed(self.first, rows, whose, self.labels, self.right, after)


# The oracle


def intervene_plainly(
    layer: nn.Module,
    batches: Batches,
    *,
    level: int | None = None,
    mode: Mode = "zero",
    rest: Rest | None = None,
    seed: int = 0,
) -> Interventions:
    """What `intervene` computes, by one full evaluation per unit: the definition, slow and simple.

    Arguments, errors and result are those of `intervene`; `batches` must be a collection that can be read twice.
    """
    with evaluating(layer):
        parts = parts_of(layer, level=level, mode=mode, seed=seed)
        record = Record(parts.num_units)
        for x, labels in batches:
            opened = parts.open(x, record.images)
            logits = parts.plain(x, None, record.images)
            logits = logits if rest is None else rest(logits)
            check_labels(labels, logits, "intervene_plainly")
            right = is_right(logits, labels)
            first = record.batch(labels, right, logits.shape[1])
            record.loaded(opened.unit)
            record.silent += int(opened.silent.sum())
            rows = torch.arange(len(labels), device=labels.device)
            for unit in range(parts.num_units):
                y = parts.plain(x, unit, first)
                after = is_right(y if rest is None else rest(y), labels)
                record.changed(first, rows, torch.full_like(rows, unit), labels, right, after)
        return record.result("intervene_plainly")
