"""Measure the accuracy of subgroups, and what a correction of one costs the others.

A *subgroup* is all rows with the same true label and the same value of a sensitive attribute, such as "blond, male".
The metrics summarize how often the classifier is right in each subgroup:

- accuracy of the *target* subgroup, the one that a correction is meant for;
- equality of opportunity (Hardt et al. 2016): by how much the true positive rate differs between sensitive
  values. The positive label is the one that the bias is about: "old", not "young", for old females;
- standard-deviation bias (Wang and Deng 2020): how far the subgroups' accuracies spread;
- max-min fairness (Lahoti et al. 2020): accuracy of the worst subgroup;
- the model re-writing score (MRS, Oldfield et al. 2024, Section 4.2): what the target subgroup gained, minus
  everything that changed for the others, whether up or down. It needs predictions from before and after;
- overall accuracy.

Every number comes with an interval from the bootstrap: how much would the number vary if the test set were drawn again?
Drawing rows again is the same as drawing how many of each subgroup are right, since no metric depends on anything else,
so the counts are drawn directly: exactly the same distribution for a fraction of the work. Before and after are drawn
together, so that rows that a correction does not change add no noise to a change. By default the size of each subgroup
is kept (*stratified*): the interval then answers for a population with the test set's composition, and no resample can
lose a subgroup.

What these numbers cannot show is in `docs/editing.md`: whether the labels are right, subgroups without a name, harm,
and other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mumoe.editing.subgroups import (
    Labels,
    Sensitive,
    Subgroup,
    Subgroups,
    as_labels,
    find_subgroups,
    require_equal_lengths,
)
from mumoe.errors import UserError
from mumoe.records import read_typed, to_plain
from mumoe.statistics import bootstrap_interval

__all__ = [
    "METRICS",
    "Bootstrap",
    "Estimate",
    "FairnessReport",
    "SubgroupResult",
    "accuracy",
    "equal_opportunity_difference",
    "fairness_report",
    "metrics_at",
    "min_accuracy",
    "rewriting_score",
    "std_bias",
    "subgroup_accuracy",
    "target_accuracy",
    "worst_value",
]

METRICS = {
    "rewriting_score": "MRS (↑)",
    "target_accuracy": "Target subpop. acc. (↑)",
    "equal_opportunity_difference": "Equality of opp. (↓)",
    "std_bias": "STD bias (↓)",
    "min_accuracy": "Subpop. max-min (↑)",
    "accuracy": "Test set acc. (↑)",
}
"""Metric -> its heading, in the order of the paper's Table 2; the arrow points to where better is."""

Values = npt.NDArray[np.float64]
Target = tuple[int | str, object]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        resamples: Test sets drawn; 0 leaves every interval out.
        confidence: Share of the resamples inside the percentile interval, which is widened to hold its estimate.
        stratified: Keep each subgroup's size. False draws the sizes too; the few resamples without any row of
            some subgroup are then left out.
        seed: Of the draws.
    """

    resamples: int = 1000
    confidence: float = 0.95
    stratified: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 0 or not 0 < self.confidence < 1:
            raise UserError(
                f"Bootstrap: expected resamples >= 0 and 0 < confidence < 1, got {self.resamples} and "
                f"{self.confidence}. Use for example 1000 and 0.95."
            )


@dataclass(frozen=True)
class Estimate:
    """A number and the interval that the bootstrap gives it; without resamples there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SubgroupResult:
    """One subgroup of a report; `before` is its accuracy under the predictions compared with, if any."""

    subgroup: Subgroup
    count: int
    accuracy: Estimate
    before: Estimate | None = None


@dataclass(frozen=True)
class FairnessReport:
    """The numbers of the paper's Table 2 and Figure 16 for one model.

    Attributes:
        target: The subgroup that a correction is meant for.
        subgroups: Each subgroup's size and accuracy (Figure 16).
        metrics: Estimates by the names of `METRICS`; `rewriting_score` only where predictions from before
            exist.
        rows: Number of test rows.
        bootstrap: How the intervals were drawn.
    """

    target: Subgroup
    subgroups: tuple[SubgroupResult, ...]
    metrics: Mapping[str, Estimate]
    rows: int
    bootstrap: Bootstrap

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values (a missing interval is null)."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FairnessReport:
        """The report that `to_dict` wrote.

        Raises:
            UserError: If the values are not those of a report.
        """
        return read_typed(cls, values, "FairnessReport")


def subgroup_accuracy(y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive) -> dict[Subgroup, float]:
    """Accuracy of every combination of true label and sensitive value, each in 0..1.

    Args:
        y_true: (rows,) true labels.
        y_pred: (rows,) predicted labels.
        sensitive_features: (rows,) sensitive values, or several attributes by name.

    Raises:
        UserError: On unequal lengths, an empty subgroup, one class only, or scores in place of labels.
    """
    groups, means = _accuracies("subgroup_accuracy", y_true, y_pred, sensitive_features)
    return {group: float(mean) for group, mean in zip(groups.groups, means, strict=True)}


def worst_value(y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive, label: int) -> str:
    """Sensitive value of the subgroup with this label that is right least often; empty if no row has the label."""
    found = subgroup_accuracy(y_true, y_pred, sensitive_features=sensitive_features)
    mine = {group.sensitive: share for group, share in found.items() if group.label == label}
    return min(mine, key=mine.__getitem__, default="")


def target_accuracy(y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive, target: Target) -> float:
    """Accuracy of one subgroup, named by its (label, sensitive value); 0..1, 1 is best.

    Raises:
        UserError: If there is no such subgroup (the nearest name is suggested), or as `subgroup_accuracy`.
    """
    groups, means = _accuracies("target_accuracy", y_true, y_pred, sensitive_features)
    return float(means[groups.index(*target, who="target_accuracy")])


def equal_opportunity_difference(
    y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive, pos_label: int | str = 1
) -> float:
    """Largest minus smallest true positive rate over the sensitive values; 0 is equal, 1 the worst.

    Two values give the paper's |TPR - TPR|. Equal to `fairlearn.metrics.equal_opportunity_difference`
    (between groups). Source: Hardt et al. 2016; appendix G.

    Args:
        y_true, y_pred, sensitive_features: As for `subgroup_accuracy`.
        pos_label: The label that the opportunity is about.
    """
    groups, means = _accuracies("equal_opportunity_difference", y_true, y_pred, sensitive_features)
    positive = groups.label_index(pos_label, who="equal_opportunity_difference")
    return float(_opportunity(means, groups, positive))


def std_bias(y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive) -> float:
    """Standard deviation of the subgroups' accuracies; 0 is even, 0.5 the worst.

    The population's (divided by the number of subgroups). The paper does not say which; its Table 2 (b) does:
    with CelebA's subgroup counts, its printed accuracies allow only this one, in every row.
    Source: Wang and Deng 2020; appendix G.
    """
    return float(_accuracies("std_bias", y_true, y_pred, sensitive_features)[1].std())


def min_accuracy(y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive) -> float:
    """Accuracy of the worst subgroup, which max-min fairness makes as large as it can; 0..1, 1 is best.

    Source: Lahoti et al. 2020; appendix G.
    """
    return float(_accuracies("min_accuracy", y_true, y_pred, sensitive_features)[1].min())


def accuracy(y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive) -> float:
    """Share of all rows that are right; 0..1, 1 is best."""
    groups, means = _accuracies("accuracy", y_true, y_pred, sensitive_features)
    return float(_overall(means, groups.counts))


def rewriting_score(
    y_true: Labels, y_pred: Labels, *, sensitive_features: Sensitive, y_pred_before: Labels, target: Target
) -> float:
    """Model re-writing score: the target subgroup's gain minus every other subgroup's absolute change.

    MRS = (after_t - before_t) - sum over the other subgroups i of |after_i - before_i|

    At most 1 - before_t (the target perfect, the others unchanged); 0 when nothing changed; negative when the
    others changed by more than the target gained. Improving the others counts against it as well.

    Args:
        y_true, y_pred, sensitive_features: As for `subgroup_accuracy`, with the labels predicted after the correction.
        y_pred_before: (rows,) labels predicted before it.
        target: (label, sensitive value) of the subgroup that it was meant for.

    Source: Oldfield et al. 2024, Section 4.2.
    """
    who = "rewriting_score"
    groups, after = _accuracies(who, y_true, y_pred, sensitive_features)
    before = _accuracies(who, y_true, y_pred_before, sensitive_features)[1]
    return float(_score(after, before, groups.index(*target, who=who)))


def fairness_report(
    y_true: Labels,
    y_pred: Labels,
    *,
    sensitive_features: Sensitive,
    target: Target,
    y_pred_before: Labels | None = None,
    bootstrap: Bootstrap | None = None,
) -> FairnessReport:
    """All metrics of one model with their intervals; equality of opportunity is about the target's label.

    Args:
        y_true, y_pred, sensitive_features: As for `subgroup_accuracy`.
        target: (label, sensitive value) of the subgroup that a correction is, or would be, meant for.
        y_pred_before: (rows,) labels predicted before a correction; adds the re-writing score.
        bootstrap: How to draw the intervals; 1,000 stratified resamples by default.

    Raises:
        UserError: As `subgroup_accuracy` and `target_accuracy`.
    """
    who, bootstrap = "fairness_report", bootstrap or Bootstrap()
    groups = find_subgroups(y_true, sensitive_features, who=who)
    aim = groups.index(*target, who=who)
    predictions = [y_pred] if y_pred_before is None else [y_pred, y_pred_before]
    right = np.stack([_right(who, y_true, prediction) for prediction in predictions])
    means = np.stack([_means(row, groups) for row in right])
    drawn, weights = _draw(right, groups, bootstrap)
    point = _all_metrics(means, groups.counts.astype(np.float64), groups, aim)
    spread = _all_metrics(drawn, weights, groups, aim)
    metrics = {name: _interval(float(point[name]), spread[name], bootstrap) for name in METRICS if name in point}
    return FairnessReport(
        target=groups.groups[aim],
        subgroups=tuple(
            SubgroupResult(
                subgroup=group,
                count=int(groups.counts[i]),
                accuracy=_interval(float(means[0, i]), drawn[:, 0, i], bootstrap),
                before=_interval(float(means[1, i]), drawn[:, 1, i], bootstrap) if len(means) > 1 else None,
            )
            for i, group in enumerate(groups.groups)
        ),
        metrics=metrics,
        rows=len(groups.codes),
        bootstrap=bootstrap,
    )


def metrics_at(
    groups: Subgroups, aim: int, y_true: Labels, *predictions: Labels, who: str = "metrics_at"
) -> dict[str, float]:
    """Values of `METRICS` without intervals, for subgroups found once and predictions tried many times.

    Args:
        groups: The rows' subgroups.
        aim: Position of the target in them.
        y_true: (rows,) true labels.
        *predictions: (rows,) predicted labels; a second one is the prediction before.
        who: The caller, named in errors.
    """
    means = np.stack([_means(_right(who, y_true, prediction), groups) for prediction in predictions])
    found = _all_metrics(means, groups.counts.astype(np.float64), groups, aim)
    return {name: float(found[name]) for name in METRICS if name in found}


def _right(who: str, y_true: Labels, y_pred: Labels) -> npt.NDArray[np.bool_]:
    truth, guess = as_labels(y_true, "y_true", who), as_labels(y_pred, "y_pred", who)
    require_equal_lengths(who, y_true=truth, y_pred=guess)
    if truth.dtype.kind != guess.dtype.kind and "U" in truth.dtype.kind + guess.dtype.kind:
        raise UserError(
            f"{who}: expected y_true and y_pred in the same words, got {truth[0].item()!r} and "
            f"{guess[0].item()!r}. Translate both to class names or both to class numbers."
        )
    return np.asarray(truth == guess, dtype=np.bool_)


def _means(right: npt.NDArray[np.bool_], groups: Subgroups) -> Values:
    hits = np.bincount(groups.codes, weights=right, minlength=len(groups.groups))
    return np.asarray(hits / groups.counts, dtype=np.float64)


def _accuracies(who: str, y_true: Labels, y_pred: Labels, sensitive_features: Sensitive) -> tuple[Subgroups, Values]:
    right = _right(who, y_true, y_pred)
    groups = find_subgroups(y_true, sensitive_features, who=who)
    return groups, _means(right, groups)


def _opportunity(means: Values, groups: Subgroups, positive: int) -> Values:
    rates = means[..., groups.labels == positive]
    return np.asarray(rates.max(-1) - rates.min(-1))


def _overall(means: Values, counts: npt.NDArray[Any]) -> Values:
    return np.asarray((means * counts).sum(-1) / counts.sum(-1))


def _score(after: Values, before: Values, aim: int) -> Values:
    change = after - before
    return np.asarray(change[..., aim] - (np.abs(change).sum(-1) - np.abs(change[..., aim])))


def _all_metrics(means: Values, counts: Values, groups: Subgroups, aim: int) -> dict[str, Values]:
    """Metrics of accuracies (..., models, groups); model 0 is measured, model 1 is the one before."""
    after = means[..., 0, :]
    found = {
        "target_accuracy": after[..., aim],
        "equal_opportunity_difference": _opportunity(after, groups, int(groups.labels[aim])),
        "std_bias": after.std(-1),
        "min_accuracy": after.min(-1),
        "accuracy": _overall(after, counts),
    }
    if means.shape[-2] > 1:
        found["rewriting_score"] = _score(after, means[..., 1, :], aim)
    return found


def _draw(right: npt.NDArray[np.bool_], groups: Subgroups, bootstrap: Bootstrap) -> tuple[Values, Values]:
    """Draw accuracies (resamples, models, groups) and subgroup sizes (resamples, groups)."""
    rng = np.random.default_rng(bootstrap.seed)
    models, size = len(right), len(groups.groups)
    pattern = (right * (1 << np.arange(models))[:, None]).sum(0)
    table = np.bincount(groups.codes * (1 << models) + pattern, minlength=size << models).reshape(size, -1)
    if bootstrap.stratified:
        draws = [rng.multinomial(row.sum(), row / row.sum(), size=bootstrap.resamples) for row in table]
        cells = np.stack(draws, axis=1)
    else:
        rows = table.sum()
        cells = rng.multinomial(rows, table.ravel() / rows, size=bootstrap.resamples).reshape(-1, *table.shape)
    weights = cells.sum(-1)
    cells, weights = cells[weights.all(1)], weights[weights.all(1)]
    hit = (np.arange(1 << models)[:, None] >> np.arange(models)) & 1
    means = np.moveaxis(cells @ hit, -1, 1) / weights[:, None, :]
    return means.astype(np.float64), weights.astype(np.float64)


def _interval(value: float, drawn: Values, bootstrap: Bootstrap) -> Estimate:
    if not len(drawn):
        return Estimate(value)
    tail = (1 - bootstrap.confidence) / 2
    low, high = bootstrap_interval(drawn, value, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))
