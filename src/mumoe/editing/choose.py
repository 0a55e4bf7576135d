"""Choose how strongly to correct, on validation rows, for a stated objective.

The paper fixes lambda = N. That can overshoot: the target subgroup gains, and other subgroups lose accuracy. Here the
strength is the one that does best on validation rows:

- ``worst_group``: the largest accuracy of the worst subgroup among strengths that cost at most `max_loss` of
  overall accuracy;
- ``match``: the smallest strength at which the target subgroup is as accurate as the rows of other subgroups with its
  label were before the correction (the setting in which methods are compared at equal benefit);
- ``rewriting_score``: the largest model re-writing score.

Strength 0 is always a candidate, so there is always an answer, and ties go to the weakest. The result is then measured
on test rows. A chosen strength depends on the sample of validation rows: with a target subgroup of 20 rows there, one
row is five points. The curve is kept to show this.

*Blind thresholding* is the control: the threshold of all rows is shifted alike, without knowledge of the subgroup, and
the shift is chosen in the same way (`choose_blind`). An edit that does no better than this does not need experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mumoe.data.columns import require_value
from mumoe.editing.subgroup_fairness import Target, metrics_at
from mumoe.editing.subgroups import Labels, as_labels, find_subgroups, sensitive_name
from mumoe.errors import UserError, unknown_argument

__all__ = [
    "OBJECTIVES",
    "Choice",
    "LabelledRows",
    "LogitShift",
    "Objective",
    "TradeOffPoint",
    "choose_blind",
    "choose_strength",
    "trade_off_curve",
]

Objective = Literal["worst_group", "match", "rewriting_score"]
OBJECTIVES = {
    "worst_group": "best worst-subgroup accuracy, losing at most max_loss of overall accuracy",
    "match": "target as accurate as others with its label were before",
    "rewriting_score": "best model re-writing score",
}
"""Objective -> what it means."""

Predict = Callable[[float], Labels]


@dataclass(frozen=True)
class LabelledRows:
    """Labels and sensitive values of some rows, in one order with their predictions.

    Attributes:
        y_true: (rows,) true labels.
        sensitive_features: (rows,) sensitive values.
    """

    y_true: npt.NDArray[Any]
    sensitive_features: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.y_true)


@dataclass(frozen=True)
class TradeOffPoint:
    """Metrics of the validation rows at one strength, by the names of `subgroup_fairness.METRICS`."""

    strength: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """A strength, why it was chosen, and the metrics at the others.

    Attributes:
        strength: The chosen strength.
        objective: Name in `OBJECTIVES`.
        max_loss: Overall accuracy that might be lost (0..1); used by ``worst_group`` alone.
        reached: False if no candidate met the objective's condition (``match`` out of reach: the strength
            that came closest was chosen).
        curve: Every candidate, from 0 to the strongest.
    """

    strength: float
    objective: str
    max_loss: float
    reached: bool
    curve: tuple[TradeOffPoint, ...]


@dataclass(frozen=True)
class LogitShift:
    """Predictions of one 0/1 head whose logit is shifted along a direction: logit + strength * direction > 0.

    Eq. 6 is the direction a-bar' a; blind thresholding the direction 1. No forward pass per strength.

    Attributes:
        logits: (rows,) logits of the head before the correction.
        direction: (rows,) what one unit of strength adds.
    """

    logits: npt.NDArray[np.floating[Any]]
    direction: npt.NDArray[np.floating[Any]]

    def __call__(self, strength: float) -> npt.NDArray[np.int64]:
        """(rows,) predicted 0/1 labels at a strength."""
        shift = 0 if strength == 0 else strength * self.direction
        return np.asarray(self.logits + shift > 0, dtype=np.int64)

    def candidates(self, sign: int = 1, most: int = 200) -> npt.NDArray[np.float64]:
        """Strengths between which some prediction differs, 0 first.

        Predictions change only where logit + strength * direction crosses 0, so these are midpoints between
        crossings (and one beyond the last); with more than `most` of them, evenly spaced ones in their order.

        Args:
            sign: 1 for strengths above 0, -1 for those below.
            most: Largest number of candidates.
        """
        moved = self.direction != 0
        crossings = -self.logits[moved].astype(np.float64) / self.direction[moved]
        crossings = np.unique(sign * crossings[np.isfinite(crossings) & (sign * crossings > 0)])
        if not len(crossings):
            return np.zeros(1)
        between = np.append((crossings[1:] + crossings[:-1]) / 2, crossings[-1] * 1.01 + 1e-6)
        kept = np.unique(np.linspace(0, len(between) - 1, min(most - 1, len(between))).round().astype(int))
        return np.concatenate([np.zeros(1), sign * between[kept]])


def trade_off_curve(
    rows: LabelledRows, predict: Predict, strengths: Sequence[float] | npt.NDArray[np.float64], *, target: Target
) -> tuple[TradeOffPoint, ...]:
    """Every metric at every strength, by rising size of the strength.

    Args:
        rows: Validation rows.
        predict: Strength to (rows,) predicted labels.
        strengths: Candidates; 0 is added.
        target: (label, sensitive value) of the subgroup that the correction is meant for.

    Raises:
        UserError: If a strength is not finite, or as `fairness_report`.
    """
    candidates = np.unique(np.append(np.asarray(strengths, dtype=np.float64), 0.0))
    if not np.isfinite(candidates).all():
        raise UserError("trade_off_curve: expected finite strengths, got NaN or infinity. Leave them out.")
    who = "trade_off_curve"
    groups = find_subgroups(rows.y_true, rows.sensitive_features, who=who)
    aim, before = groups.index(*target, who=who), predict(0.0)
    return tuple(
        TradeOffPoint(strength, metrics_at(groups, aim, rows.y_true, predict(strength), before, who=who))
        for strength in sorted(candidates.tolist(), key=abs)
    )


def choose_strength(
    rows: LabelledRows,
    predict: Predict,
    strengths: Sequence[float] | npt.NDArray[np.float64],
    *,
    target: Target,
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
) -> Choice:
    """Choose the strength that serves the objective best on validation rows.

    Args:
        rows: Validation rows.
        predict: Strength to (rows,) predicted labels of these rows.
        strengths: Candidates; 0 is added.
        target: (label, sensitive value) of the subgroup that the correction is meant for.
        objective: One of `OBJECTIVES`.
        max_loss: Overall accuracy that ``worst_group`` may lose, 0..1 (0.01 is one point).

    Raises:
        UserError: If the objective is unknown, `max_loss` is out of range, or as `fairness_report`.
    """
    if objective not in OBJECTIVES:
        raise unknown_argument("choose_strength", "objective", objective, OBJECTIVES)
    if not 0 <= max_loss <= 1:
        raise UserError(f"choose_strength: expected `max_loss` in 0..1, got {max_loss}. One point is 0.01.")
    curve = trade_off_curve(rows, predict, strengths, target=target)
    if objective == "match":
        goal = _counterpart(rows, predict(0.0), target)
        best, reached = _matching(curve, goal)
    else:
        floor = curve[0].metrics["accuracy"] - max_loss if objective == "worst_group" else 0.0
        name = "min_accuracy" if objective == "worst_group" else "rewriting_score"
        allowed = [point for point in curve if point.metrics["accuracy"] >= floor - 1e-12]
        best, reached = max(allowed, key=lambda point: (point.metrics[name], -abs(point.strength))), True
    return Choice(best.strength, objective, max_loss, reached, curve)


def choose_blind(
    rows: LabelledRows,
    logits: npt.NDArray[np.floating[Any]],
    *,
    target: Target,
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
) -> Choice | None:
    """How far to shift the logits of all rows alike; the control of an edit, see `choose_strength`.

    Args:
        rows: Validation rows.
        logits: (rows,) their logits without edits.
        target: (label, sensitive value) of the subgroup that the correction is meant for.
        objective: One of `OBJECTIVES`.
        max_loss: Overall accuracy that ``worst_group`` may lose, 0..1.

    Returns:
        The choice, whose strengths are added to the logits; None if a subgroup has no validation row.
    """
    if not _has_every_subgroup(rows, target):
        return None
    shift = LogitShift(logits, np.ones_like(logits))
    strengths = shift.candidates(1 if target[0] == 1 else -1)
    return choose_strength(rows, shift, strengths, target=target, objective=objective, max_loss=max_loss)


def _has_every_subgroup(rows: LabelledRows, target: Target) -> bool:
    values = set(rows.sensitive_features.tolist())
    found = set(zip(rows.y_true.tolist(), rows.sensitive_features.tolist(), strict=True))
    return target in found and len(values) > 1 and len(found) == 2 * len(values)


def _counterpart(rows: LabelledRows, before: Labels, target: Target) -> float:
    """Accuracy before the correction of the rows with the target's label and any other sensitive value."""
    names = sorted(set(rows.sensitive_features.tolist()))
    mine = require_value("choose_strength", "sensitive value", names, sensitive_name(target[1]))
    others = (rows.y_true == target[0]) & (rows.sensitive_features != mine)
    guess = as_labels(before, "y_pred", "choose_strength")
    return float((guess[others] == rows.y_true[others]).mean())


def _matching(curve: Sequence[TradeOffPoint], goal: float) -> tuple[TradeOffPoint, bool]:
    for point in curve:
        if point.metrics["target_accuracy"] >= goal - 1e-12:
            return point, True
    closest = max(curve, key=lambda point: (point.metrics["target_accuracy"], -abs(point.strength)))
    return closest, False
