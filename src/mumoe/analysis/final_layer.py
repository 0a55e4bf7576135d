"""All ablations of a layer from one evaluation, where its output is the model's output or goes through `rest`.

The plain method evaluates the model once per expert with that expert's weight at zero. This gives the same counts of
right answers for every class and expert from one evaluation:

1. Only rows whose coefficient for expert n is above 0 can change, and they change by exactly a_n W_n z.
2. Most of these cannot change enough. With v the part of the latent that leaves (see `contributions`), logit c
   moves against logit j by at most ||v|| ||O_c - O_j||, so an answer stands while that is below the gap of the
   two logits. Each row has one number, the largest ||v|| that provably changes nothing; pairs below it are done.
3. The rest is computed: with many classes first against the closest rivals of the label alone. The pair is decided if a
   rival wins, and if the label beats them all and the bound of 2 covers the other classes.
4. Where rounding errors could change a decision, the plain method computes that batch and expert, so that even ties are
   decided in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mumoe.analysis.contributions import Opened, Parts
from mumoe.analysis.outcomes import ROUNDING, Batches, Record, Rest, check_labels, is_right, margin

__all__ = ["ablate_fast", "ablate_plainly"]

RIVALS, MANY_CLASSES = 4, 256
"""From how many classes on the closest rivals are tried first, and how many of them."""

BLOCK = 4_000_000
"""Numbers held at once while pairs are computed."""


def ablate_plainly(parts: Parts, batches: Batches, rest: Rest | None, record: Record) -> None:
    """Evaluate once per unit: the definition."""
    for x, labels in batches:
        opened = parts.open(x, record.images)
        logits = _through(rest, parts.plain(x, None, record.images))
        check_labels(labels, logits)
        right = is_right(logits, labels)
        first = record.batch(labels, right, logits.shape[1])
        record.loaded(opened.unit)
        record.silent += int(opened.silent.sum())
        for unit in range(parts.num_units):
            record.whole_batch(first, unit, labels, right, _through(rest, parts.plain(x, unit, first)))


def ablate_fast(parts: Parts, batches: Batches, rest: Rest | None, record: Record) -> None:
    """Evaluate once, and compute the pairs of row and unit that could change an answer."""
    distances, norms = parts.distances(), parts.norms()
    for x, labels in batches:
        opened = parts.open(x, record.images)
        logits = _through(rest, opened.logits)
        check_labels(labels, logits)
        _Step(parts, opened, logits, labels, x, rest, record).run(distances.to(logits), norms.to(logits))


def _through(rest: Rest | None, y: Tensor) -> Tensor:
    return y if rest is None else rest(y)


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
        """(rows,) bound on the rounding error of a difference of two logits."""
        scale = self.opened.scale if self.rest is None else self.logits.abs().amax(1)
        bits = ROUNDING if self.rest is None else 32 * ROUNDING
        return scale * (bits * torch.finfo(self.logits.dtype).eps)

    def _plain(self, unit: int | None) -> Tensor:
        self.record.rechecked += 1
        return _through(self.rest, self.parts.plain(self.x, unit, self.record.images if unit is None else self.first))

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
        """Decide the pairs that the rivals alone decide; returns the pairs that are left."""
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
        after = _through(self.rest, y)
        labels = self.labels[row]
        self.outcome.append((pairs, is_right(after, labels)))
        self.doubtful.append(pairs[margin(after, labels) <= self.tolerance[row]])

    def _silent(self) -> None:
        """Where no unit contributes any more, the layer's output is exactly zero."""
        pairs = self.opened.silent.nonzero()[:, 0]
        self.record.silent += len(pairs)
        if not len(pairs):
            return
        nothing = torch.zeros_like(self.opened.logits[:1])
        logits = _through(self.rest, nothing).expand(len(pairs), -1)
        labels = self.labels[self.opened.row[pairs]]
        self.outcome.append((pairs, is_right(logits, labels)))
        if self.rest is not None:
            near = margin(logits, labels) <= self.tolerance[self.opened.row[pairs]]
            self.doubtful.append(pairs[near])

    def _settle(self) -> None:
        """Record the outcomes; if one is in doubt, all of that unit come from the plain method."""
        doubtful = torch.cat(self.doubtful) if self.doubtful else self.opened.unit[:0]
        units = self.opened.unit[doubtful].unique()
        for pairs, after in self.outcome:
            row, unit = self.opened.row[pairs], self.opened.unit[pairs]
            sure = ~torch.isin(unit, units)
            before = self.right[row[sure]]
            self.record.changed(self.first, row[sure], unit[sure], self.labels, before, after[sure])
        for unit in units.tolist():
            self.record.whole_batch(self.first, unit, self.labels, self.right, self._plain(unit))
