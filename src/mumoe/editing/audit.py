"""Find a bias that nobody named: which experts handle the rows that the model gets wrong?

Experts split the data among themselves without being told how. If a subgroup is treated badly and the gate sends it
to experts of its own, the rows of those experts are right less often than the others. So: for every expert, and
every pair of experts (in a hierarchy: every combination of one expert per level), take the rows that it *handles*
(its coefficient, or product of coefficients, reaches a threshold), compare their accuracy with that of all other
rows with the same true label, and rank by the gap.

Labels are compared separately because a bias has a direction: a subgroup is missed (label 1, too low a logit) or
wrongly included (label 0). It also keeps an expert from being suspected merely because its rows have the harder label.

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
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor

from mumoe.devices import host
from mumoe.editing.edits import Rewrite
from mumoe.editing.fairness import Estimate
from mumoe.errors import UserError, unknown_name

__all__ = [
    "Audit",
    "Finding",
    "audit",
    "benjamini_hochberg",
    "first_rank",
    "fisher_less",
    "handled",
    "holm",
    "newcombe",
    "propose",
]

Correction = Literal["holm", "fdr"]
CORRECTIONS = ("holm", "fdr")


@dataclass(frozen=True)
class Finding:
    """One expert or combination with one label.

    Attributes:
        experts: (level, expert) pairs; a row is handled if the product of their coefficients reaches the threshold.
        label: The true label of the rows compared.
        rows: Rows handled.
        accuracy: Their accuracy.
        rest: Accuracy of all other rows with this label.
        gap: rest - accuracy, with its interval; positive is worse than the rest.
        p_value: One-sided, of Fisher's exact test.
        p_corrected: After the correction over all comparisons.
    """

    experts: tuple[tuple[int, int], ...]
    label: int
    rows: int
    accuracy: float
    rest: float
    gap: Estimate
    p_value: float
    p_corrected: float

    def __str__(self) -> str:
        names = " + ".join(f"{n}" if level == 0 else f"{n} (level {level})" for level, n in self.experts)
        return (
            f"expert {names}, label {self.label}: {self.rows} rows, accuracy {self.accuracy:.3f} against "
            f"{self.rest:.3f} (gap {self.gap.value:.3f} [{self.gap.low:.3f}, {self.gap.high:.3f}], "
            f"corrected p {self.p_corrected:.2g})"
        )


@dataclass(frozen=True)
class Audit:
    """A ranking.

    Attributes:
        findings: Significant ones first, by falling gap; then the others, by rising p-value.
        comparisons: How many were made, for which p-values are corrected.
        threshold: Coefficient from which a row counts as handled.
        alpha: Level of significance.
        correction: ``holm`` or ``fdr``.
    """

    findings: tuple[Finding, ...]
    comparisons: int
    threshold: float
    alpha: float
    correction: str

    @property
    def significant(self) -> tuple[Finding, ...]:
        """Findings whose corrected p-value is at most alpha."""
        return tuple(finding for finding in self.findings if finding.p_corrected <= self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


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
        min_rows: Groups with fewer rows, or with fewer left to compare with, are not tested.
        alpha: Level of significance after correction.
        correction: ``holm`` or ``fdr``.
        most: Findings kept.

    Raises:
        UserError: If sizes disagree, the threshold is out of range, or nothing is large enough to be tested.
    """
    _check(coefficients, right, labels, threshold, correction)
    candidates = list(_candidates(coefficients, threshold, pairs))
    right = right.bool()
    parts: list[tuple[int, list[Experts], Tensor]] = []
    for label in labels.unique().tolist():
        chosen = labels == label
        hits = right[chosen].double()
        total, good = len(hits), hits.sum()
        for names, members in candidates:
            counts = _counts(members, chosen, hits)
            keep = (counts[:, 0] >= min_rows) & (total - counts[:, 0] >= min_rows)
            kept = [names[i] for i in keep.nonzero()[:, 0].tolist()]
            n, k = counts[keep].T
            parts.append((int(label), kept, torch.stack([k, n, good - k, total - n])))
    table = torch.cat([numbers for *_, numbers in parts], dim=1)
    if not table.shape[1]:
        raise UserError(
            f"audit: expected experts that handle at least {min_rows} rows of a label, got none. "
            "Lower min_rows or threshold, or take more rows."
        )
    tested = [(label, experts) for label, kept, _ in parts for experts in kept]
    p = fisher_less(*table)
    corrected = holm(p) if correction == "holm" else benjamini_hochberg(p)
    return Audit(_ranked(tested, table, p, corrected, alpha, most), len(tested), threshold, alpha, correction)


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
        UserError: If the experts handle no training row of this label.
    """
    inside = handled(coefficients, finding.experts, threshold) & (labels == finding.label)
    if not bool(inside.any()):
        raise UserError(f"propose: expected training rows handled by {finding.experts}, got none. Take another.")
    letters = "abcdefghijk"[: len(coefficients)]
    inputs = ",".join(f"z{letter}" for letter in letters)
    total: Tensor = torch.einsum(f"{inputs}->{letters}", *(host(a[inside]) for a in coefficients))
    mean = total / int(inside.sum())
    return Rewrite.of(head, mean, float(mean.numel()) if finding.label == 1 else -float(mean.numel()))


def first_rank(
    found: Audit, coefficients: Sequence[Tensor], labels: Tensor, group: Tensor, *, label: int | None = None
) -> tuple[int, Finding] | None:
    """Place (from 1) of the first finding most of whose rows are in a known group, to judge audits by.

    Args:
        found: An audit of these rows.
        coefficients: As in `audit`.
        labels: As in `audit`.
        group: (rows,) whether a row is in the group, such as a planted subgroup.
        label: Count findings with this label only.

    Returns:
        The place and the finding, or None if there is none among the findings kept.
    """
    place = 0
    for finding in found.findings:
        if label is not None and finding.label != label:
            continue
        place += 1
        inside = handled(coefficients, finding.experts, found.threshold) & (labels == finding.label)
        if bool(group[inside].double().mean() > 0.5):
            return place, finding
    return None


def handled(coefficients: Sequence[Tensor], experts: Sequence[tuple[int, int]], threshold: float) -> Tensor:
    """(rows,) whether these experts handle the row.

    One expert of each of several levels: the product of the coefficients reaches the threshold. Several experts of
    one level: each coefficient does.
    """
    levels = [level for level, _ in experts]
    columns = torch.stack([coefficients[level][:, n] for level, n in experts])
    value = columns.prod(0) if len(set(levels)) == len(levels) else columns.amin(0)
    return value >= threshold


def fisher_less(k: Tensor, n: Tensor, k_rest: Tensor, n_rest: Tensor) -> Tensor:
    """One-sided p-values of Fisher's exact test, many at a time: as few right as k of n, by chance?

    Args:
        k: Right in the group.
        n: Size of the group.
        k_rest: Right outside.
        n_rest: Size of the outside.

    Returns:
        (comparisons,) float64, P(K <= k) of the hypergeometric distribution.
    """
    k, n, k_rest, n_rest = (host(value).round() for value in (k, n, k_rest, n_rest))
    good, total = k + k_rest, n + n_rest
    low = (n - (total - good)).clamp(min=0)
    steps = torch.arange(int((k - low).max()) + 1, dtype=torch.float64, device=k.device)
    parts = []
    for chunk in torch.arange(len(k), device=k.device).split(max(1, 2_000_000 // len(steps))):
        x = k[chunk, None] - steps
        g, t, m = good[chunk, None], total[chunk, None], n[chunk, None]
        inside = x >= low[chunk, None]
        x = torch.where(inside, x, low[chunk, None])
        log_p = _log_choose(g, x) + _log_choose(t - g, m - x) - _log_choose(t, m)
        parts.append(torch.where(inside, log_p, -math.inf).logsumexp(1).exp())
    return torch.cat(parts).clamp(max=1)


def holm(p: Tensor) -> Tensor:
    """Holm's corrected p-values (family-wise error rate)."""
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1, dtype=p.dtype, device=p.device)
    adjusted = (p[order] * factors).cummax(0).values.clamp(max=1)
    return torch.empty_like(p).scatter(0, order, adjusted)


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Benjamini and Hochberg's corrected p-values (false discovery rate)."""
    order = p.argsort()
    factors = len(p) / torch.arange(1, len(p) + 1, dtype=p.dtype, device=p.device)
    adjusted = (p[order] * factors).flip(0).cummin(0).values.flip(0).clamp(max=1)
    return torch.empty_like(p).scatter(0, order, adjusted)


def newcombe(k: int, n: int, k_rest: int, n_rest: int, confidence: float = 0.95) -> Estimate:
    """k_rest / n_rest - k / n with Newcombe's hybrid score interval, sound for small groups and rates of 0 or 1."""
    a, b = k_rest / n_rest, k / n
    (low_a, high_a), (low_b, high_b) = _wilson(k_rest, n_rest, confidence), _wilson(k, n, confidence)
    value = a - b
    low = value - math.hypot(a - low_a, high_b - b)
    return Estimate(value, low, value + math.hypot(high_a - a, b - low_b))


def _wilson(k: int, n: int, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = k / n
    center, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (center - spread) / (1 + z * z / n), (center + spread) / (1 + z * z / n)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


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


def _counts(members: Members, chosen: Tensor, hits: Tensor) -> Tensor:
    """(groups, 2): rows of each group among the chosen, and how many of them are right."""
    inside, other = members[0][chosen], members[1]
    if other is None:
        return torch.stack([inside.sum(0), inside.T @ hits], dim=1)
    both, good = inside.T @ inside, (inside * hits[:, None]).T @ inside
    upper = torch.triu_indices(len(both), len(both), offset=1, device=both.device)
    return torch.stack([both[upper[0], upper[1]], good[upper[0], upper[1]]], dim=1)


def _ranked(
    names: Sequence[tuple[int, Experts]],
    table: Tensor,
    p: Tensor,
    corrected: Tensor,
    alpha: float,
    most: int,
) -> tuple[Finding, ...]:
    k, n, k_rest, n_rest = table
    gaps = k_rest / n_rest - k / n
    significant = (corrected <= alpha).nonzero()[:, 0]
    others = (corrected > alpha).nonzero()[:, 0]
    order = torch.cat(
        [significant[gaps[significant].argsort(descending=True, stable=True)], others[p[others].argsort(stable=True)]]
    )
    return tuple(
        Finding(
            experts=names[i][1],
            label=names[i][0],
            rows=int(n[i]),
            accuracy=float(k[i] / n[i]),
            rest=float(k_rest[i] / n_rest[i]),
            gap=newcombe(int(k[i]), int(n[i]), int(k_rest[i]), int(n_rest[i])),
            p_value=float(p[i]),
            p_corrected=float(corrected[i]),
        )
        for i in order[:most].tolist()
    )


def _check(coefficients: Sequence[Tensor], right: Tensor, labels: Tensor, threshold: float, correction: str) -> None:
    if correction not in CORRECTIONS:
        raise unknown_name("audit", "correction", correction, CORRECTIONS)
    if not 0 < threshold <= 1:
        raise UserError(f"audit: expected a threshold above 0 and at most 1, got {threshold}. 0.1 is the default.")
    sizes = [len(a) for a in coefficients] + [len(right), len(labels)]
    if not coefficients or len(set(sizes)) > 1 or right.ndim != 1 or labels.ndim != 1:
        raise UserError(
            f"audit: expected coefficients, right and labels of the same rows, got {sizes} rows. "
            "Pass one (rows, experts) tensor per level and two of shape (rows,)."
        )
