"""Choose how strongly to correct, on validation rows, for a stated objective.

The paper fixes lambda = N. That can overshoot: the target subgroup gains, and then others pay for it. Here
the strength is what does best on rows that it may look at:

- ``worst_group``: the largest accuracy of the worst subgroup among strengths that cost at most `max_loss` of
  overall accuracy;
- ``match``: the smallest strength at which the target subgroup is as accurate as the other people with its
  label were before the correction (the setting in which methods are compared at equal benefit);
- ``rewriting_score``: the largest model re-writing score.

Strength 0 is always among the candidates, so there is always an answer, and ties go to the weakest. What was
chosen is then measured once on sealed rows (`final_report`). A chosen strength carries the luck of the
validation rows: with a target subgroup of 20 rows there, one row is five points. The curve is kept so that this
can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mumoe.data.columns import require_value
from mumoe.editing.fairness import (
    Bootstrap,
    FairnessReport,
    Target,
    fairness_report,
    metrics_at,
)
from mumoe.editing.splits import Rows, SealedRows
from mumoe.editing.subgroups import Labels, as_labels, find_subgroups, sensitive_name
from mumoe.errors import UserError, unknown_name

__all__ = [
    "OBJECTIVES",
    "Choice",
    "LogitShift",
    "TradeOffPoint",
    "choose_strength",
    "final_report",
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
class TradeOffPoint:
    """Metrics of the validation rows at one strength, by the names of `fairness.METRICS`."""

    strength: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """A strength, why it was taken, and what the others would have given.

    Attributes:
        strength: The chosen strength.
        objective: Name in `OBJECTIVES`.
        max_loss: Overall accuracy that might be lost (0..1); only ``worst_group`` minds it.
        reached: False if no candidate met the objective's condition (``match`` out of reach: the strength
            that came closest was taken).
        curve: Every candidate, from 0 to the strongest.
    """

    strength: float
    objective: str
    max_loss: float
    reached: bool
    curve: tuple[TradeOffPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain JSON values."""
        return asdict(self)


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
    rows: Rows, predict: Predict, strengths: Sequence[float] | npt.NDArray[np.float64], *, target: Target
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
    rows: Rows,
    predict: Predict,
    strengths: Sequence[float] | npt.NDArray[np.float64],
    *,
    target: Target,
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
) -> Choice:
    """Take the strength that serves the objective best on validation rows. No test row is within reach.

    Args:
        rows: Validation rows.
        predict: Strength to (rows,) predicted labels of these rows.
        strengths: Candidates; 0 is added.
        target: (label, sensitive value) of the subgroup that the correction is meant for.
        objective: One of `OBJECTIVES`.
        max_loss: Overall accuracy that ``worst_group`` may lose, 0..1 (0.01 is one point).

    Raises:
        UserError: If the objective is unknown, `max_loss` is out of range, sealed rows are passed, or as
            `fairness_report`.
    """
    if objective not in OBJECTIVES:
        raise unknown_name("choose_strength", "objective", objective, OBJECTIVES)
    if not 0 <= max_loss <= 1:
        raise UserError(f"choose_strength: expected max_loss in 0..1, got {max_loss}. One point is 0.01.")
    if not isinstance(rows, Rows):
        raise UserError("choose_strength: expected validation rows, got sealed ones. Choose on validation.")
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


def final_report(
    sealed: SealedRows,
    y_pred: Labels,
    *,
    y_pred_before: Labels,
    target: Target,
    bootstrap: Bootstrap | None = None,
    purpose: str = "final report",
) -> FairnessReport:
    """Open the sealed test rows and report the corrected predictions on them."""
    rows = sealed.open(purpose)
    return fairness_report(
        rows.y_true,
        y_pred,
        sensitive_features=rows.sensitive_features,
        target=target,
        y_pred_before=y_pred_before,
        bootstrap=bootstrap,
    )


def _counterpart(rows: Rows, before: Labels, target: Target) -> float:
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
