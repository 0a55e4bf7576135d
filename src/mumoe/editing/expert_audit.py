"""Find a bias that nobody named: which experts handle the rows that the model gets wrong?

Experts split the data among themselves without being told how. If a subgroup is treated badly and the gate sends it
to experts of its own, the rows of those experts are right less often than the others. So: for every expert, and
every pair of experts (in a hierarchy: every combination of one expert per level), take the rows that it *handles*
(its coefficient, or product of coefficients, reaches a threshold), compare their accuracy with that of all other
rows with the same true label, and rank by the gap.

Labels are compared separately because a bias has a direction: a subgroup is missed (label 1, too low a logit) or
wrongly included (label 0). It also keeps an expert from being suspected merely because its rows have the harder label.

With many labels no group may hold `min_rows` rows of any one of them. Then all labels are pooled: a group is compared
with the other rows label by label, and only the sums are tested (the exact test of a sum of hypergeometric counts; the
gap is Mantel and Haenszel's). If even that leaves nothing, the floor `min_rows` is lowered to what the rows hold. The
result states either.

Very many comparisons are made, and some gap is always large by chance. Each gets the one-sided p-value of Fisher's
exact test, corrected over all comparisons: by Holm (``holm``: the chance of even one false alarm is below alpha) or
by Benjamini and Hochberg (``fdr``: at most a share alpha of the alarms is false on average; sure for comparisons that
depend on each other positively, as overlapping groups do, and disjoint ones nearly). Gaps carry Newcombe's 95%
interval, which is not corrected. The interval of the first in a ranking is too optimistic: it was chosen for being
extreme.

What it cannot find: a subgroup that no expert separates from others, and bias that lies in the labels themselves. A
finding is a group of rows to look at, not a named group of people.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.devices import host
from mumoe.editing.expert_edits import Rewrite
from mumoe.editing.rewriting import joint_sum
from mumoe.editing.subgroup_fairness import Estimate
from mumoe.errors import UserError, unknown_argument
from mumoe.plots.dots import dot_figure
from mumoe.records import Record, record
from mumoe.statistics import benjamini_hochberg, fisher_less, holm, newcombe, stratified_gap, stratified_less

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Audit", "Finding", "audit", "handled", "propose"]

Correction = Literal["holm", "fdr"]
CORRECTIONS = ("holm", "fdr")


@dataclass(frozen=True)
class Finding:
    """One expert or combination with one label.

    Attributes:
        experts: (level, expert) pairs; a row is handled if the product of their coefficients reaches the threshold.
        label: The true label of the rows compared; None if all labels were pooled.
        rows: Rows handled.
        accuracy: Their accuracy.
        rest: Accuracy of all other rows with this label; pooled, accuracy + gap.
        gap: rest - accuracy, with its interval; positive is worse than the rest.
        p_value: One-sided, of Fisher's exact test.
        p_corrected: After the correction over all comparisons.
    """

    experts: tuple[tuple[int, int], ...]
    label: int | None
    rows: int
    accuracy: float
    rest: float
    gap: Estimate
    p_value: float
    p_corrected: float

    def experts_in_words(self) -> str:
        """The experts, such as ``3 + 7 (level 1)``."""
        return " + ".join(f"{n}" if level == 0 else f"{n} (level {level})" for level, n in self.experts)

    def __str__(self) -> str:
        return (
            f"expert {self.experts_in_words()}{_of_label(self.label)}: {self.rows} rows, accuracy {self.accuracy:.3f} "
            f"against {self.rest:.3f} (gap {self.gap.value:.3f} [{self.gap.low:.3f}, {self.gap.high:.3f}], "
            f"corrected p {self.p_corrected:.2g})"
        )


@record
class Audit(Record):
    """A ranking.

    Attributes:
        findings: Significant ones first, by falling gap; then the others, by rising p-value.
        comparisons: How many were made, for which p-values are corrected.
        threshold: Coefficient from which a row counts as handled.
        alpha: Level of significance.
        correction: ``holm`` or ``fdr``.
        min_rows: Rows that a group had to have.
        pooled: Whether all labels were pooled, because no group had as many rows of one label.
    """

    findings: tuple[Finding, ...]
    comparisons: int
    threshold: float
    alpha: float
    correction: str
    min_rows: int = 10
    pooled: bool = False

    @property
    def significant(self) -> tuple[Finding, ...]:
        """Findings whose corrected p-value is at most alpha."""
        return tuple(finding for finding in self.findings if finding.p_corrected <= self.alpha)

    def headline(self) -> str:
        return (
            f"{len(self.significant)} of {self.comparisons:,} groups are right less often than the rest "
            f"({self.correction}, alpha {self.alpha:g})"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row per finding, in order."""
        return [self._row(finding) for finding in self.findings]

    def _row(self, finding: Finding) -> dict[str, Any]:
        return {
            "experts": finding.experts_in_words(),
            "label": finding.label,
            "images": finding.rows,
            "accuracy": finding.accuracy,
            "rest": finding.rest,
            "gap": finding.gap.value,
            "low": finding.gap.low,
            "high": finding.gap.high,
            "p_corrected": finding.p_corrected,
            "significant": finding.p_corrected <= self.alpha,
        }

    def plot(self, top: int = 20) -> Figure:
        """Draw the gaps of the first findings with their intervals, significant ones filled.

        Raises:
            UserError: If matplotlib is not installed.
        """
        shown = self.findings[:top]
        names = [f"{found.experts_in_words()}{_of_label(found.label)}" for found in shown]
        hollow = [place for place, found in enumerate(shown) if found.p_corrected > self.alpha]
        label = "accuracy of the rest minus that of the group"
        return dot_figure(
            names, {"gap": [found.gap for found in shown]}, label=label, title=self.headline(), hollow=hollow
        )


def _of_label(label: int | None) -> str:
    return ", all labels" if label is None else f", label {label}"


def audit(
    coefficients: Sequence[Tensor],
    right: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.1,
    pairs: bool = True,
    min_rows: int = 10,
    alpha: float = 0.05,
    correction: Correction = "fdr",
    most: int = 1000,
) -> Audit:
    """Rank experts and their combinations by how far below the rest the accuracy of the rows they handle is.

    Args:
        coefficients: One (rows, N_e) tensor per level.
        right: (rows,) whether the prediction is right.
        labels: (rows,) true labels; each is audited by itself.
        threshold: A row is handled by experts whose coefficient (the product, for several) reaches this, 0..1.
        pairs: Look at pairs of experts of a level too.
        min_rows: Groups with fewer rows, or with fewer left to compare with, are not tested; if that leaves no group,
            labels are pooled, and then the floor is lowered.
        alpha: Level of significance after correction.
        correction: ``holm`` or ``fdr``.
        most: Findings kept.

    Raises:
        UserError: If sizes disagree, the threshold is out of range, or no group has two rows to be tested.
    """
    _check(coefficients, right, labels, threshold, correction)
    if min_rows < 2:
        raise UserError(f"audit: expected `min_rows` >= 2, got {min_rows}. 10 is the default.")
    candidates = list(_candidates(coefficients, threshold, pairs))
    names, table, values = _tables(candidates, right.bool(), labels, min_rows)
    found, floor = _by_label(names, table, values, min_rows), min_rows
    pooled = not found
    if pooled:
        table = _comparable(table)
        sizes = table.sum(1)[:, [1, 3]].min(1)
        floor = int(min(min_rows, sizes.max(initial=-1)))
        found = [_pooled(names[g], table[g]) for g in np.flatnonzero(sizes >= floor)] if floor >= 2 else []
    if not found:
        raise UserError(
            f"audit: expected experts that handle some of {len(labels):,} rows and not all, got none. "
            "Lower the `threshold`, or use more rows."
        )
    p = np.array([finding.p_value for finding in found])
    corrected = holm(p) if correction == "holm" else benjamini_hochberg(p)
    compared = [replace(finding, p_corrected=float(p)) for finding, p in zip(found, corrected, strict=True)]
    ranked = sorted(compared, key=partial(_place, alpha=alpha))[:most]
    return Audit(tuple(ranked), len(found), threshold, alpha, correction, floor, pooled)


def _place(finding: Finding, alpha: float) -> tuple[bool, float]:
    """Sorts significant findings first, by falling gap, then the others by rising p-value."""
    significant = finding.p_corrected <= alpha
    return not significant, -finding.gap.value if significant else finding.p_value


def propose(
    finding: Finding, coefficients: Sequence[Tensor], labels: Tensor, *, head: int, threshold: float = 0.1
) -> Rewrite:
    """The rewriting that a finding suggests: eq. 6 for the rows that its experts handle, raised or lowered by label.

    Lambda is the number of (combinations of) experts, the paper's; choose it on validation before use.

    Args:
        finding: Of a 0/1 attribute.
        coefficients: One (rows, N_e) tensor per level, of *training* rows.
        labels: (rows,) their true labels, 0 or 1.
        head: The output of the attribute.
        threshold: As in `audit`.

    Raises:
        UserError: If the experts handle no training row of this label, or the finding has no label.
    """
    if finding.label is None:
        raise UserError("propose: expected a finding of one label, got one of all labels pooled. Audit more rows.")
    inside = handled(coefficients, finding.experts, threshold) & (labels == finding.label)
    if not bool(inside.any()):
        raise UserError(f"propose: expected training rows handled by {finding.experts}, got none. Use another finding.")
    mean = joint_sum([host(a[inside]) for a in coefficients]) / int(inside.sum())
    return Rewrite.of(head, mean, float(mean.numel()) if finding.label == 1 else -float(mean.numel()))


def handled(coefficients: Sequence[Tensor], experts: Sequence[tuple[int, int]], threshold: float) -> Tensor:
    """(rows,) whether these experts handle the row.

    One expert of each of several levels: the product of the coefficients reaches the threshold. Several experts of
    one level: each coefficient does.
    """
    levels = [level for level, _ in experts]
    columns = torch.stack([coefficients[level][:, n] for level, n in experts])
    value = columns.prod(0) if len(set(levels)) == len(levels) else columns.amin(0)
    return value >= threshold


Members = tuple[Tensor, Tensor | None]
Experts = tuple[tuple[int, int], ...]


def _candidates(coefficients: Sequence[Tensor], threshold: float, pairs: bool) -> list[tuple[list[Experts], Members]]:
    """Names of groups with their membership: (rows, groups), or two of them whose columns are crossed."""
    found: list[tuple[list[Experts], Members]] = []
    for level, a in enumerate(coefficients):
        inside = (a >= threshold).double()
        used = inside.any(0).nonzero()[:, 0].tolist()
        found.append(([((level, n),) for n in used], (inside[:, used], None)))
        if pairs and len(used) > 1:
            crossed: list[Experts] = [((level, n), (level, m)) for n, m in itertools.combinations(used, 2)]
            found.append((crossed, (inside[:, used], inside[:, used])))
    if len(coefficients) > 1:
        names, columns = _products(coefficients, threshold)
        found.append((names, (columns, None)))
    return found


def _products(coefficients: Sequence[Tensor], threshold: float) -> tuple[list[Experts], Tensor]:
    """Combinations of one expert per level whose product of coefficients reaches the threshold somewhere."""
    names: list[Experts] = [()]
    columns = coefficients[0].new_ones(len(coefficients[0]), 1)
    for level, a in enumerate(coefficients):
        product = (columns[:, :, None] * a[:, None, :]).flatten(1)
        names = [(*name, (level, n)) for name in names for n in range(a.shape[1])]
        kept = (product >= threshold).any(0).nonzero()[:, 0].tolist()  # products only fall with further levels
        names, columns = [names[i] for i in kept], product[:, kept]
    return names, (columns >= threshold).double()


Counts = npt.NDArray[np.int64]
"""(groups, labels, 4): right in the group, its size, right outside, size of the outside."""


def _tables(
    candidates: Sequence[tuple[list[Experts], Members]], right: Tensor, labels: Tensor, least: int
) -> tuple[list[Experts], Counts, list[int]]:
    """Groups of at least `least` rows (or of the most that there are), their counts by label, and the labels."""
    values = [int(label) for label in labels.unique().tolist()]
    everything = torch.ones_like(right)
    totals = torch.cat([_counts(members, everything, right.double()) for _, members in candidates])[:, 0]
    kept = (totals >= min(least, float(totals.max()) if len(totals) else 0)).nonzero()[:, 0]
    every = [name for part, _ in candidates for name in part]
    parts = []
    for label in values:
        chosen = labels == label
        hits = right[chosen].double()
        counts = torch.cat([_counts(members, chosen, hits) for _, members in candidates])[kept]
        n, k = counts.round().long().T
        parts.append(torch.stack([k, n, int(hits.sum()) - k, len(hits) - n], dim=1))
    return [every[i] for i in kept.tolist()], torch.stack(parts, dim=1).cpu().numpy(), values


def _counts(members: Members, chosen: Tensor, hits: Tensor) -> Tensor:
    """(groups, 2): rows of each group among the chosen, and how many of them are right."""
    inside, other = members[0][chosen], members[1]
    if other is None:
        return torch.stack([inside.sum(0), inside.T @ hits], dim=1)
    both, good = inside.T @ inside, (inside * hits[:, None]).T @ inside
    upper = torch.triu_indices(len(both), len(both), offset=1, device=both.device)
    return torch.stack([both[upper[0], upper[1]], good[upper[0], upper[1]]], dim=1)


def _comparable(table: Counts) -> Counts:
    """Counts with zeros for labels that have rows on one side alone: they cannot be compared."""
    both = (table[:, :, 1] > 0) & (table[:, :, 3] > 0)
    return np.where(both[:, :, None], table, 0)


def _by_label(names: Sequence[Experts], table: Counts, values: Sequence[int], least: int) -> list[Finding]:
    """Each group with each label of which enough rows are on both sides; p-values are not corrected yet."""
    label, group = np.nonzero(((table[:, :, 1] >= least) & (table[:, :, 3] >= least)).T)
    counts = table[group, label]
    found = []
    columns = (part.tolist() for part in (group, label, counts, fisher_less(*counts.T)))
    for g, place, (k, n, k_rest, n_rest), p in zip(*columns, strict=True):
        accuracy, rest = k / n, k_rest / n_rest
        gap = Estimate(rest - accuracy, *newcombe(k, n, k_rest, n_rest))
        found.append(Finding(names[g], values[place], n, accuracy, rest, gap, p, p))
    return found


def _pooled(experts: Experts, counts: Counts) -> Finding:
    """A group with all labels, compared label by label."""
    k, n, *_ = counts.sum(0).tolist()
    gap = Estimate(*stratified_gap(*counts.T))
    accuracy, p = k / n, stratified_less(*counts.T)
    return Finding(experts, None, n, accuracy, accuracy + gap.value, gap, p, p)


def _check(coefficients: Sequence[Tensor], right: Tensor, labels: Tensor, threshold: float, correction: str) -> None:
    if correction not in CORRECTIONS:
        raise unknown_argument("audit", "correction", correction, CORRECTIONS)
    if not 0 < threshold <= 1:
        raise UserError(f"audit: expected `threshold` above 0 and at most 1, got {threshold}. 0.1 is the default.")
    sizes = [len(a) for a in coefficients] + [len(right), len(labels)]
    if not coefficients or len(set(sizes)) > 1 or right.ndim != 1 or labels.ndim != 1:
        raise UserError(
            f"audit: expected coefficients, right and labels of the same rows, got {sizes} rows. "
            "Pass one (rows, experts) tensor per level and two of shape (rows,)."
        )
