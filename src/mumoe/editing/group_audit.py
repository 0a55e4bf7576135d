"""Which groups of rows are wrong more often than the rest? The testing and the ranking that every audit shares.

A group is compared with all other rows that have the same true label. Its excess is the number of its errors beyond
those that it would have if it were right as often as the rest: its rows times the gap in accuracy. Groups are ranked by

    score = excess / (rows + 20)

The gap alone would favour groups of ten rows, whose gaps are large by chance, and the excess alone the largest groups;
20 rows is where the two balance (`PRIOR`). Significance is stated beside the score and does not change the order: with
few errors among the rest a small gap becomes significant sooner, however few errors it causes.

Labels are compared separately because a bias has a direction: a subgroup is missed (label 1, too low a logit) or
wrongly included (label 0). It also keeps a group from being flagged merely because its rows have the harder label:
a column that determines the label leaves no rest to compare with, and is not tested.

With many labels no group may hold `min_rows` rows of any one of them. Then all labels are pooled: a group is compared
with the other rows label by label, and only the sums are tested (the exact test of a sum of hypergeometric counts).
The rest's accuracy is then standardized: what it would be with as many rows of each label as the group. If even that
leaves nothing, the floor `min_rows` is lowered to what the rows allow. The result records both.

Very many comparisons are made, and some gap is always large by chance. Each gets the one-sided p-value of Fisher's
exact test, corrected over all comparisons: by Holm (``holm``: the chance of even one false alarm is below alpha) or
by Benjamini and Hochberg (``fdr``: at most a share alpha of the alarms is false on average; proven for comparisons that
depend on each other positively, as overlapping groups do, and nearly true for disjoint ones). Gaps have Newcombe's 95%
interval, which is not corrected. The interval of the first finding is too optimistic, because the finding was selected
for being extreme.

Groups overlap, and one failure may fill the first places of a ranking. So a group is listed under one that ranks above
it if `merge` (by default half) of its rows are in that one, or the other way round: the overlap is the number of common
rows over that of the smaller group. A significant group is never listed under one that is not. Merging comes
after the tests: the correction is for all comparisons made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mumoe.editing.subgroup_fairness import Estimate
from mumoe.errors import UserError, require, unknown_argument
from mumoe.plots.dots import dot_figure
from mumoe.records import Record, record
from mumoe.statistics import benjamini_hochberg, fisher_less, holm, newcombe, stratified_gap, stratified_less

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MERGE", "MIN_ROWS", "PRIOR", "Audit", "Correction", "Finding", "Groups", "Name", "Rules", "rank_groups"]

Correction = Literal["holm", "fdr"]
CORRECTIONS = ("holm", "fdr")

PRIOR = 20
"""Rows added to a group's in the score. On validation rows of 18 planted biases (docs/editing.md) the median place of
the planted group is 6.5 with 10 and with 20, and 8 with 40."""

MERGE = 0.5
"""Overlap from which a group is listed under another, chosen on the same rows."""

MIN_ROWS = 10
"""Rows of a group that is tested, by default."""

BLOCK = 2048
"""Rows at a time while overlaps are counted."""

DENSE = 1 / 6
"""Share of the columns that a row has, from which overlaps are counted by a product of matrices."""

Name = tuple[tuple[Any, Any], ...]
"""The name of a group: (level, expert) pairs, or (column, value) pairs."""


class Rules(TypedDict, total=False):
    """Settings of `rank_groups` that every audit takes."""

    min_rows: int
    alpha: float
    correction: Correction
    merge: float
    most: int


@dataclass(frozen=True)
class Finding:
    """One group with one label.

    Attributes:
        experts: (level, expert) pairs; a row is handled if the product of their coefficients reaches the threshold.
            Empty for a group by named attributes.
        label: The true label of the rows compared; None if all labels were pooled.
        rows: Rows of the group.
        accuracy: Their accuracy.
        rest: Accuracy of all other rows with this label; pooled, with the labels weighted as in the group.
        gap: rest - accuracy, with its interval; positive is worse than the rest.
        p_value: One-sided, of Fisher's exact test.
        p_corrected: After the correction over all comparisons.
        attributes: (column, value) pairs that all rows of the group have; empty for a group by experts.
        merged: Groups that overlap with this one and rank below it.
        score: rows * gap / (rows + 20), by which findings are ranked; above -1 and below 1.
    """

    experts: tuple[tuple[int, int], ...]
    label: int | None
    rows: int
    accuracy: float
    rest: float
    gap: Estimate
    p_value: float
    p_corrected: float
    attributes: tuple[tuple[str, str], ...] = ()
    merged: tuple[Finding, ...] = ()
    score: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "score", self.rows * self.gap.value / (self.rows + PRIOR))

    @property
    def excess(self) -> float:
        """Errors in excess of those of as many other rows with this label."""
        return self.rows * self.gap.value

    def experts_in_words(self) -> str:
        """The experts, such as ``3 + 7 (level 1)``."""
        return " + ".join(f"{n}" if level == 0 else f"{n} (level {level})" for level, n in self.experts)

    def group_in_words(self) -> str:
        """The group, such as ``expert 3``, ``experts 3 + 7`` or ``studio = openmoji, group = Objects``."""
        if self.attributes:
            return ", ".join(f"{column} = {value}" for column, value in self.attributes)
        return f"expert{'s' if len(self.experts) > 1 else ''} {self.experts_in_words()}"

    def __str__(self) -> str:
        return (
            f"{self.group_in_words()}{_of_label(self.label)}: {self.rows} rows, accuracy {self.accuracy:.3f} "
            f"against {self.rest:.3f} (gap {self.gap.value:.3f} [{self.gap.low:.3f}, {self.gap.high:.3f}], "
            f"score {self.score:.3f}, corrected p {self.p_corrected:.2g})"
        )


@record
class Audit(Record):
    """A ranking.

    Attributes:
        findings: By falling score.
        comparisons: How many were made, for which p-values are corrected.
        threshold: Coefficient from which a row counts as handled; 0 for groups by named attributes.
        alpha: Level of significance.
        correction: ``holm`` or ``fdr``.
        min_rows: Rows that a group had to have.
        pooled: Whether all labels were pooled, because no group had as many rows of one label.
        merge: Overlap from which a group was listed under another; 0 if none was.
    """

    findings: tuple[Finding, ...]
    comparisons: int
    threshold: float
    alpha: float
    correction: str
    min_rows: int = 10
    pooled: bool = False
    merge: float = 0.0

    @property
    def significant(self) -> tuple[Finding, ...]:
        """Findings whose corrected p-value is at most alpha; without those merged into them."""
        return tuple(finding for finding in self.findings if finding.p_corrected <= self.alpha)

    def headline(self) -> str:
        if not self.comparisons:
            return "No group is large enough to be compared with the rest"
        every = [found for finding in self.findings for found in (finding, *finding.merged)]
        alarms = sum(finding.p_corrected <= self.alpha for finding in every)
        merged = f"; {len(self.significant)} after merging those that overlap" if alarms > len(self.significant) else ""
        return (
            f"{alarms} of {self.comparisons:,} groups are right less often than the rest "
            f"({self.correction}, alpha {self.alpha:g}){merged}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row per finding, in order."""
        return [self._row(finding) for finding in self.findings]

    def _row(self, finding: Finding) -> dict[str, Any]:
        named = {"attributes": finding.group_in_words()} if finding.attributes else {}
        return {
            **(named or {"experts": finding.experts_in_words()}),
            "label": finding.label,
            "images": finding.rows,
            "accuracy": finding.accuracy,
            "rest": finding.rest,
            "gap": finding.gap.value,
            "low": finding.gap.low,
            "high": finding.gap.high,
            "score": finding.score,
            "p_corrected": finding.p_corrected,
            "significant": finding.p_corrected <= self.alpha,
            "merged": len(finding.merged),
        }

    def plot(self, top: int = 20) -> Figure:
        """Draw the gaps of the first findings with their intervals, significant ones filled.

        Raises:
            UserError: If matplotlib is not installed.
        """
        shown = self.findings[:top]
        names = [
            f"{found.group_in_words() if found.attributes else found.experts_in_words()}{_of_label(found.label)}"
            for found in shown
        ]
        hollow = [place for place, found in enumerate(shown) if found.p_corrected > self.alpha]
        label = "accuracy of the rest minus that of the group"
        return dot_figure(
            names, {"gap": [found.gap for found in shown]}, label=label, title=self.headline(), hollow=hollow
        )


def _of_label(label: int | None) -> str:
    return ", all labels" if label is None else f", label {label}"


# Groups ---------------------------------------------------------------------------------------------------------

Counts = npt.NDArray[np.int64]
"""(.., 4): right in the group, its size, right outside, size of the outside."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Groups:
    """Groups of rows: each is a column of 0 and 1, or where two columns are 1. Only the ones are held.

    Args:
        names: Of the columns.
        inside: (rows, columns) of 0 and 1: a matrix, a tensor or a sparse array.
        crossed: Whether the groups are the pairs of columns that have a row in common, instead of the columns.
    """

    def __init__(self, names: Sequence[Name], inside: Any, *, crossed: bool = False) -> None:
        self._names = names
        self.inside = _sparse().csr_array(inside, dtype=np.float64)
        self.pairs: Ints | None = _upper(self._products(slice(None)))[0] if crossed else None

    def __len__(self) -> int:
        return len(self._names) if self.pairs is None else len(self.pairs)

    def name(self, place: int) -> Name:
        """Name of a group; that of a pair joins those of its columns."""
        if self.pairs is None:
            return self._names[place]
        first, second = self.pairs[place].tolist()
        return (*self._names[first], *self._names[second])

    def sizes(self, rows: Any) -> tuple[Ints, Ints]:
        """(groups,) how many of some rows each group has, and its smaller column; -1 where it is a column itself."""
        if self.pairs is None:
            counts = np.asarray(self.inside[rows].sum(0)).astype(np.int64)
            return counts, np.full_like(counts, -1)
        products = self._products(rows)
        found, counts = _upper(products)
        sizes = np.zeros(len(self), dtype=np.int64)
        sizes[np.searchsorted(self._key(self.pairs), self._key(found))] = counts
        columns = products.diagonal().astype(np.int64)
        return sizes, columns[self.pairs].min(1)

    def members(self, places: Sequence[int], rows: slice) -> Any:
        """(rows, len(places)) 0 and 1, of some groups: sparse where the columns are."""
        inside = self.inside[rows]
        if inside.nnz > DENSE * inside.shape[0] * inside.shape[1]:
            inside = inside.toarray().astype(np.float32)  # exact: a block has few rows
        else:
            inside = inside.tocsc()
        if self.pairs is None:
            return inside[:, list(places)]
        first, second = (inside[:, columns] for columns in self.pairs[list(places)].T)
        return first * second if isinstance(inside, np.ndarray) else first.multiply(second)

    def _products(self, rows: Any) -> Any:
        """(columns, columns) rows that two columns have in common; takes rows x (columns of a row)^2 steps."""
        inside = self.inside[rows]
        return inside.T @ inside

    def _key(self, pairs: Ints) -> Ints:
        key: Ints = pairs[:, 0] * self.inside.shape[1] + pairs[:, 1]
        return key


def _upper(products: Any) -> tuple[Ints, Ints]:
    """The pairs of columns with a product above 0, (pairs, 2) in order, and the products."""
    found = _sparse().triu(products, k=1).tocoo()
    order = np.lexsort((found.col, found.row))
    pairs = np.stack([found.row, found.col], axis=1)[order].astype(np.int64)
    return pairs, found.data[order].round().astype(np.int64)


def _sparse() -> Any:
    return require("scipy.sparse", "vision", "audit")


@dataclass(frozen=True)
class _Found:
    """A finding and its group: position among the `Groups`, and in them."""

    finding: Finding
    part: int
    place: int


@dataclass(frozen=True)
class _Tables:
    """Counts of the groups that are large enough, one entry for each group and label of which it has rows.

    Attributes:
        groups: (part, place) of each group.
        group: (entries,) position of the group.
        label: (entries,) position of the label; entries are in the order of labels, then of groups.
        counts: (entries, 4).
        alike: (entries,) whether a pair has all rows with the label that one of its columns has.
        labels: Their values.
    """

    groups: list[tuple[int, int]]
    group: Ints
    label: Ints
    counts: Counts
    alike: npt.NDArray[np.bool_]
    labels: list[int]


def rank_groups(
    candidates: Sequence[Groups],
    right: Tensor,
    labels: Tensor,
    *,
    named: Callable[[Name], dict[str, Any]],
    min_rows: int = MIN_ROWS,
    alpha: float = 0.05,
    correction: Correction = "fdr",
    merge: float = MERGE,
    most: int = 1000,
    threshold: float = 0.0,
) -> Audit:
    """Rank groups of rows by their excess of errors over the rest.

    Args:
        candidates: The groups.
        right: (rows,) whether the prediction is right.
        labels: (rows,) true labels; each is audited separately.
        named: A group's name as fields of `Finding`.
        min_rows: Groups with fewer rows, or with fewer left to compare with, are not tested; if that leaves no group,
            labels are pooled, and then the floor is lowered.
        alpha: Level of significance after correction.
        correction: ``holm`` or ``fdr``.
        merge: Overlap (common rows over those of the smaller group) from which a group is listed under one that ranks
            above it, 0..1; 0 for never.
        most: Findings kept, those merged included: significant ones first, and of these those with the largest score.
        threshold: Recorded in the result.

    Returns:
        The ranking; without findings if no group has two rows to be tested.

    Raises:
        UserError: If a setting is out of range.
    """
    if correction not in CORRECTIONS:
        raise unknown_argument("audit", "correction", correction, CORRECTIONS)
    if min_rows < 2:
        raise UserError(f"audit: expected `min_rows` >= 2, got {min_rows}. 10 is the default.")
    if not 0 <= merge <= 1:
        raise UserError(f"audit: expected `merge` in 0..1, got {merge}. 0 merges no groups.")
    table = _tables(candidates, right.bool(), labels, min_rows)

    found, floor = _by_label(table, min_rows), min_rows
    pooled = not len(found.group)
    if pooled:
        found, floor = _pooled(table, min_rows)
    corrected = (holm if correction == "holm" else benjamini_hochberg)(found.p)
    chosen = np.lexsort((-found.scores(), corrected > alpha))[:most]  # with very many groups, few become findings
    items = []
    for entry in chosen.tolist():
        part, place = table.groups[found.group[entry]]
        finding = found.finding(entry, float(corrected[entry]), named(candidates[part].name(place)))
        items.append(_Found(finding, part, place))
    ranked = sorted(items, key=lambda item: (-item.finding.score, item.finding.p_value))
    kept = _merged(ranked, candidates, labels, merge, alpha) if merge else [item.finding for item in ranked]
    return Audit(tuple(kept), len(found.group), threshold, alpha, correction, floor, pooled, merge)


# Tests ----------------------------------------------------------------------------------------------------------


def _tables(candidates: Sequence[Groups], right: Tensor, labels: Tensor, least: int) -> _Tables:
    """Groups of at least `least` rows (or of the most that there are), and their counts by label."""
    truth, good = labels.cpu().numpy(), right.cpu().numpy()
    values, starts = np.unique(np.sort(truth), return_index=True)
    totals = [groups.sizes(slice(None))[0] for groups in candidates]
    floor = min(least, max((int(total.max(initial=0)) for total in totals), default=0))
    kept = [np.flatnonzero(total >= floor) for total in totals]
    order = np.argsort(truth, kind="stable")
    entries: list[tuple[Ints, Ints, Counts, npt.NDArray[np.bool_]]] = []
    for place, rows in enumerate(np.split(order, starts[1:]) if len(order) else []):
        hits = rows[good[rows]]
        first = 0
        for groups, chosen in zip(candidates, kept, strict=True):
            n, smaller = (part[chosen] for part in groups.sizes(rows))
            some = np.flatnonzero(n)
            n, k = n[some], groups.sizes(hits)[0][chosen][some]
            counts = np.stack([k, n, len(hits) - k, len(rows) - n], axis=1)
            entries.append((first + some, np.full(len(some), place), counts, n == smaller[some]))
            first += len(chosen)
    names = [(part, place) for part, chosen in enumerate(kept) for place in chosen.tolist()]
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.bool_)
    columns = [np.concatenate(column) for column in zip(nothing, *entries, strict=True)]
    return _Tables(names, *columns, labels=values.tolist())


@dataclass(frozen=True)
class _Compared:
    """Groups that were compared with the rest, one entry for each group and label; p-values are not corrected.

    Attributes:
        group: (entries,) position of the group.
        label: (entries,) the label; None if all were pooled.
        rows: (entries,) rows of the group.
        accuracy, rest: (entries,) accuracy of the group and of the rest.
        p: (entries,).
        ends: From an entry to the ends of the gap's interval.
    """

    group: Ints
    label: Ints | None
    rows: Ints
    accuracy: Floats
    rest: Floats
    p: Floats
    ends: Callable[[int], tuple[float, float]]

    def scores(self) -> Floats:
        """(entries,) as `Finding.score`."""
        return np.asarray(self.rows * (self.rest - self.accuracy) / (self.rows + PRIOR))

    def finding(self, entry: int, p_corrected: float, name: dict[str, Any]) -> Finding:
        """One entry as a finding."""
        accuracy, rest = float(self.accuracy[entry]), float(self.rest[entry])
        about = {
            "label": None if self.label is None else int(self.label[entry]),
            "rows": int(self.rows[entry]),
            "accuracy": accuracy,
            "rest": rest,
            "gap": Estimate(rest - accuracy, *self.ends(entry)),
            "p_value": float(self.p[entry]),
            "p_corrected": p_corrected,
        }
        return Finding(**{"experts": (), **name, **about})


def _by_label(table: _Tables, least: int) -> _Compared:
    """Each group with each label of which enough rows are on both sides.

    A pair that has the same rows as one of its columns is not a separate group.
    """
    large = (table.counts[:, 1] >= least) & (table.counts[:, 3] >= least) & ~table.alike
    counts, label = table.counts[large], np.array(table.labels, np.int64)[table.label[large]]
    k, n, k_rest, n_rest = counts.T

    def ends(entry: int) -> tuple[float, float]:
        low, high = newcombe(*counts[entry])
        return float(low), float(high)

    return _Compared(table.group[large], label, n, k / n, k_rest / n_rest, fisher_less(k, n, k_rest, n_rest), ends)


def _pooled(table: _Tables, least: int) -> tuple[_Compared, int]:
    """Groups with all labels, compared label by label, and the floor that leaves some."""
    both = (table.counts[:, 1] > 0) & (table.counts[:, 3] > 0)  # labels with rows on one side alone leave nothing
    group, counts, alike = table.group[both], table.counts[both], table.alike[both]
    number = len(table.groups)
    sizes = np.stack([np.bincount(group, counts[:, side], number) for side in (1, 3)]).min(0).astype(np.int64)
    sizes[np.bincount(group, ~alike, number) == 0] = 0
    floor = int(min(least, sizes.max(initial=-1)))
    chosen = np.flatnonzero(sizes >= floor) if floor >= 2 else np.zeros(0, np.int64)
    order = np.argsort(group, kind="stable")
    strata = np.split(counts[order], np.bincount(group, minlength=number).cumsum()[:-1])
    gaps = np.array([stratified_gap(*strata[place].T) for place in chosen]).reshape(-1, 3)
    p = np.array([stratified_less(*strata[place].T) for place in chosen])
    k, n = np.array([strata[place].sum(0)[:2] for place in chosen], np.int64).reshape(-1, 2).T
    found = _Compared(chosen, None, n, k / n, k / n + gaps[:, 0], p, lambda entry: tuple(gaps[entry, 1:].tolist()))
    return found, floor if floor >= 2 else least


# Merging --------------------------------------------------------------------------------------------------------


def _merged(
    ranked: Sequence[_Found], candidates: Sequence[Groups], labels: Tensor, least: float, alpha: float
) -> list[Finding]:
    """Findings in order; one that overlaps with a kept one is listed under the first such."""
    common = _common_rows(ranked, candidates, labels)
    sizes, alarm = common.diagonal(), np.array([item.finding.p_corrected <= alpha for item in ranked])
    kept: list[int] = []
    under: dict[int, list[Finding]] = {}
    for place, item in enumerate(ranked):
        overlap = common[place, kept] / np.minimum(sizes[place], sizes[kept]).clip(min=1)
        above = np.flatnonzero((overlap >= least) & (alarm[kept] | ~alarm[place]))
        if above.size:
            under[kept[above[0]]].append(item.finding)
        else:
            kept.append(place)
            under[place] = []
    return [replace(ranked[place].finding, merged=tuple(under[place])) for place in kept]


def _common_rows(ranked: Sequence[_Found], candidates: Sequence[Groups], labels: Tensor) -> npt.NDArray[np.float64]:
    """(findings, findings) rows that two findings have in common; those of different labels have none."""
    order = sorted(range(len(ranked)), key=lambda n: ranked[n].part)
    parts = {part: [ranked[n].place for n in order if ranked[n].part == part] for part in range(len(candidates))}
    wanted = np.array([-1 if (label := ranked[n].finding.label) is None else label for n in order], np.int64)
    common, truth = np.zeros((len(ranked), len(ranked))), labels.cpu().numpy()
    for start in range(0, len(truth) if ranked else 0, BLOCK):
        rows = slice(start, start + BLOCK)
        members = [candidates[part].members(places, rows) for part, places in parts.items() if places]
        if all(map(_sparse().issparse, members)):
            inside = _sparse().hstack(members).tocoo()
            inside.data *= (wanted[inside.col] < 0) | (truth[rows][inside.row] == wanted[inside.col])
            inside = inside.tocsr()
            inside.eliminate_zeros()
        else:
            dense = [part.toarray().astype(np.float32) if _sparse().issparse(part) else part for part in members]
            inside = np.concatenate(dense, axis=1) * ((wanted < 0) | (truth[rows, None] == wanted))
        common += inside.T @ inside
    back = np.argsort(order)
    return common[np.ix_(back, back)]
