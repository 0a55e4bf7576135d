"""Find a bias without naming it: which experts handle the rows that the model gets wrong?

Experts split the data without supervision. If the model treats a subgroup badly and the gate sends it to separate
experts, the rows of those experts are right less often than the others. So: for every expert, and every pair of experts
(in a hierarchy: every combination of one expert per level), find the rows that it *handles* (its coefficient, or
product of coefficients, reaches a threshold), and compare and rank them as `group_audit` does.

What it cannot find: a subgroup that no expert separates from others, and bias that lies in the labels themselves. A
finding is a group of rows to look at, not a named group of people. Where the data name attributes, `attribute_audit`
tests those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mumoe.coefficients import Coefficients, SparseCoefficients, as_coefficients, segment_rows
from mumoe.devices import host
from mumoe.editing.expert_edits import Rewrite
from mumoe.editing.group_audit import Audit, Finding, Groups, Name, Rules, rank_groups
from mumoe.editing.operations import Mean
from mumoe.editing.rewriting import joint_sum
from mumoe.errors import UserError, require

__all__ = ["audit", "handled", "propose", "proposed", "proposed_rows"]

Level = Tensor | Coefficients
"""(rows, N_e) coefficients of one level."""


def audit(
    coefficients: Sequence[Level],
    right: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.1,
    pairs: bool = True,
    **rules: Unpack[Rules],
) -> Audit:
    """Rank experts and their combinations by the excess of errors, over the rest, of the rows that they handle.

    Args:
        coefficients: One (rows, N_e) tensor, or `Coefficients`, per level.
        right: (rows,) whether the prediction is right.
        labels: (rows,) true labels; each is audited separately.
        threshold: A row is handled by experts whose coefficient (the product, for several) reaches this, 0..1.
        pairs: Test pairs of experts of a level too.
        **rules: ``min_rows``, ``alpha``, ``correction``, ``merge`` and ``most``, as for `group_audit.rank_groups`.

    Raises:
        UserError: If sizes disagree, a setting is out of range, or no group has two rows to be tested.
    """
    _check(coefficients, right, labels, threshold)
    found = rank_groups(
        _candidates(coefficients, threshold, pairs),
        right,
        labels,
        named=lambda name: {"experts": name},
        threshold=threshold,
        **rules,
    )
    if not found.comparisons:
        raise UserError(
            f"audit: expected experts that handle some of {len(labels):,} rows and not all, got none. "
            "Lower the `threshold`, or use more rows."
        )
    return found


def propose(
    finding: Finding, coefficients: Sequence[Level], labels: Tensor, *, head: int, threshold: float = 0.1
) -> Rewrite:
    """The rewriting that a finding suggests: eq. 6 for the rows that its experts handle, raised or lowered by label.

    Lambda is the number of (combinations of) experts, the paper's; choose it on validation before use.

    Args:
        finding: By experts, of a 0/1 attribute.
        coefficients: One (rows, N_e) tensor per level, of *training* rows.
        labels: (rows,) their true labels, 0 or 1.
        head: The output of the attribute.
        threshold: As in `audit`.

    Raises:
        UserError: If the experts handle no training row of this label, or the finding has no label or no experts.
    """
    inside = proposed_rows(finding, coefficients, labels, threshold)
    mean = joint_sum([host(as_coefficients(a).to_dense()[inside]) for a in coefficients]) / int(inside.sum())
    return proposed(finding, mean, head)


def proposed_rows(finding: Finding, coefficients: Sequence[Level], labels: Tensor, threshold: float) -> Tensor:
    """(rows,) the rows whose mean coefficients `propose` takes.

    Raises:
        UserError: As `propose`.
    """
    if not finding.experts:
        got = finding.group_in_words()
        raise UserError(f"propose: expected a finding by experts, got {got!r}. Rewrite for that subgroup by its name.")
    if finding.label is None:
        raise UserError("propose: expected a finding of one label, got one of all labels pooled. Audit more rows.")
    inside = handled(coefficients, finding.experts, threshold) & (labels == finding.label)
    if not bool(inside.any()):
        raise UserError(f"propose: expected training rows handled by {finding.experts}, got none. Use another finding.")
    return inside


def proposed(finding: Finding, mean: Mean, head: int) -> Rewrite:
    """As `propose`, from the mean coefficients (N_1, .., N_E) of the training rows that the experts handle."""
    return Rewrite.of(head, mean, float(mean.numel()) if finding.label == 1 else -float(mean.numel()))


def handled(coefficients: Sequence[Level], experts: Sequence[tuple[int, int]], threshold: float) -> Tensor:
    """(rows,) whether these experts handle the row.

    One expert of each of several levels: the product of the coefficients reaches the threshold. Several experts of
    one level: each coefficient does.
    """
    levels = [level for level, _ in experts]
    columns = torch.stack([as_coefficients(coefficients[level]).column(n) for level, n in experts])
    value = columns.prod(0) if len(set(levels)) == len(levels) else columns.amin(0)
    return value >= threshold


def _candidates(coefficients: Sequence[Level], threshold: float, pairs: bool) -> list[Groups]:
    """Every expert that handles a row, pairs of them, and combinations of one expert per level."""
    found: list[Groups] = []
    for level, a in enumerate(coefficients):
        kept = as_coefficients(a).at_least(threshold)
        used, columns = kept.indices.unique(return_inverse=True)
        names: list[Name] = [((level, n),) for n in used.tolist()]
        inside = _indicator(kept.offsets, columns, len(used))
        found.append(Groups(names, inside))
        if pairs and len(used) > 1:
            found.append(Groups(names, inside, crossed=True))
    if len(coefficients) > 1:
        found.append(_products(coefficients, threshold))
    return found


def _products(coefficients: Sequence[Level], threshold: float) -> Groups:
    """Combinations of one expert per level whose product of coefficients reaches the threshold somewhere."""
    first, *others = _within_reach(coefficients, threshold)
    row, value, unit, sizes = segment_rows(first.offsets), first.values, first.indices, [first.num_experts]
    for level in others:
        counts = level.offsets.diff()[row]
        left = torch.repeat_interleave(counts)
        place = torch.arange(len(left)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        right = level.offsets[row[left]] + place
        row, value, unit = row[left], value[left] * level.values[right], unit[left] * level.num_experts
        unit, kept = unit + level.indices[right], value >= threshold  # products only fall with further levels
        row, value, unit = row[kept], value[kept], unit[kept]
        sizes.append(level.num_experts)
    used, columns = unit.unique(return_inverse=True)
    experts = torch.unravel_index(used, sizes)
    names: list[Name] = [tuple(enumerate(combination)) for combination in torch.stack(experts, 1).tolist()]
    offsets = F.pad(torch.bincount(row, minlength=len(first.offsets) - 1).cumsum(0), (1, 0))
    return Groups(names, _indicator(offsets, columns, len(used)))


def _within_reach(coefficients: Sequence[Level], threshold: float) -> list[SparseCoefficients]:
    """The levels without coefficients that reach the threshold with no coefficients of the other levels.

    Of softmax gates over many experts that leaves few of the millions of products.
    """
    levels = [as_coefficients(a).at_least() for a in coefficients]
    if not all(len(level.values) and bool(level.values.min() >= 0) for level in levels):
        return levels
    peaks = [float(level.values.max()) for level in levels]
    bounds = [threshold / math.prod([*peaks[:e], *peaks[e + 1 :]]) for e in range(len(peaks))]
    return [level.at_least(bound * (1 - 1e-6)) for level, bound in zip(levels, bounds, strict=True)]


def _indicator(offsets: Tensor, columns: Tensor, width: int) -> Any:
    """(rows, width) sparse, 1 in the columns of each row."""
    sparse = require("scipy.sparse", "vision", "audit")
    ones, shape = np.ones(len(columns), np.int8), (len(offsets) - 1, width)
    return sparse.csr_array((ones, columns.int().cpu().numpy(), offsets.cpu().numpy()), shape=shape)


def _check(coefficients: Sequence[Level], right: Tensor, labels: Tensor, threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise UserError(f"audit: expected `threshold` above 0 and at most 1, got {threshold}. 0.1 is the default.")
    sizes = [a.shape[0] for a in coefficients] + [len(right), len(labels)]
    if not coefficients or len(set(sizes)) > 1 or right.ndim != 1 or labels.ndim != 1:
        raise UserError(
            f"audit: expected coefficients, right and labels of the same rows, got {sizes} rows. "
            "Pass one (rows, experts) tensor per level and two of shape (rows,)."
        )
