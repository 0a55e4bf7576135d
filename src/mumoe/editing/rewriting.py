"""The paper's correction of a bias (eq. 6): find the experts that treat a subpopulation, and correct their output.

The mean coefficients a-bar say to which experts the gate sends a subpopulation. Adding lambda a-bar' a to one
output's logit gives everybody who is sent to the same experts the same correction, and others little. With
lambda = N, the number of experts, an input treated uniformly (each coefficient 1/N) moves by 1.

In a hierarchy the coefficients of eq. 6 are those of *combinations* of experts, the products over the levels. So
a-bar is the mean product (reading ``joint``), and N the number of combinations. The product of each level's mean
(reading ``levels``) is smaller to store and folds into fewer components, but also reaches combinations that the
subpopulation never uses.

`rewrite` is the whole procedure, for any model that is `Rewritable`: mean coefficients of training rows, lambda
chosen on validation rows. `rewrite_run` does it for a trained run and measures the resulting stack on test rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mumoe.devices import host
from mumoe.editing.choose import Choice, LogitShift, Objective, choose_strength, final_report
from mumoe.editing.edits import Rewrite
from mumoe.editing.fairness import Bootstrap, FairnessReport
from mumoe.editing.splits import Rows
from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE

if TYPE_CHECKING:
    from mumoe.editing.runs import EditingRun, Problem
    from mumoe.editing.stack import EditStack

__all__ = [
    "Corrected",
    "Reading",
    "Rewritable",
    "Rewriting",
    "Strength",
    "mean_coefficients",
    "rewrite",
    "rewrite_run",
    "rewriting",
]

Reading = Literal["joint", "levels"]
Strength = float | Literal["auto", "paper"]
"""Size of lambda, ``paper`` (the number of combinations of experts) or ``auto`` (chosen on validation rows)."""


def rewriting(
    layer: MuMoE,
    head: int,
    mean: Tensor,
    *,
    direction: Literal["raise", "lower"] = "raise",
    strength: float | None = None,
) -> Rewrite:
    """The paper's rewriting of one output: lambda = N by default, its sign by the direction asked for.

    Args:
        layer: The layer.
        head: The output, a 0/1 attribute's logit.
        mean: Mean coefficients of the subpopulation, (N_1, .., N_E), from `mean_coefficients`.
        direction: Whether the subpopulation is missed (``raise``) or wrongly included (``lower``).
        strength: Size of lambda, at least 0; the number of (combinations of) experts by default.
    """
    if direction not in ("raise", "lower"):
        raise unknown_name("rewriting", "direction", direction, ("raise", "lower"))
    size = float(mean.numel()) if strength is None else float(strength)
    edit = Rewrite.of(head, mean, size if direction == "raise" else -size)
    edit.operation(layer.factorization)
    return edit


@torch.no_grad()
def mean_coefficients(layer: MuMoE, features: Tensor | Iterable[Tensor], *, reading: Reading = "joint") -> Tensor:
    """Mean coefficients of a subpopulation, (N_1, .., N_E) in float64; in evaluation mode.

    Args:
        layer: The layer.
        features: Its inputs, (..., in_features), or batches of them.
        reading: ``joint`` means products of the levels' coefficients row by row, ``levels`` multiplies the means.

    Raises:
        UserError: If there is no row.
    """
    if reading not in ("joint", "levels"):
        raise unknown_name("mean_coefficients", "reading", reading, ("joint", "levels"))
    batches = [features] if isinstance(features, Tensor) else features
    training, count, sums = layer.training, 0, [torch.zeros(())]
    layer.eval()
    try:
        for batch in batches:
            levels = [host(a.reshape(-1, a.shape[-1])) for a in layer.coefficients(batch)]
            count += len(levels[0])
            parts = [_joint_sum(levels)] if reading == "joint" else [a.sum(0) for a in levels]
            sums = [
                part if total.ndim == 0 else total + part for total, part in zip(sums * len(parts), parts, strict=False)
            ]
    finally:
        layer.train(training)
    if not count:
        raise UserError("mean_coefficients: expected rows of the subpopulation, got none. Check the filter.")
    mean = sums[0] / count
    for part in sums[1:]:
        mean = mean[..., None] * (part / count)
    return mean


def _joint_sum(levels: Sequence[Tensor]) -> Tensor:
    letters = "abcdefghijk"[: len(levels)]
    inputs = ",".join(f"z{letter}" for letter in letters)
    joint: Tensor = torch.einsum(f"{inputs}->{letters}", *levels)
    return joint


# The procedure -------------------------------------------------------------------------------------------------


class Rewritable(Protocol):
    """What `rewrite` needs of a model, one of its outputs and one subgroup; where the numbers are kept is open."""

    def mean(self) -> tuple[Tensor, int]:
        """Mean coefficients (N_1, .., N_E) of the subgroup's training rows, and how many rows these are."""
        ...

    def validation(self, mean: Tensor) -> tuple[Rows, LogitShift]:
        """Validation rows, with their logits before the rewriting and what a lambda of 1 adds to each."""
        ...


@dataclass(frozen=True)
class Rewriting:
    """A rewriting and how its strength was found.

    Attributes:
        edit: The edit; its strength is lambda with its sign.
        images: Training rows of the subgroup, over which the coefficients were averaged.
        choice: How lambda was chosen on validation rows; None if it was given.
    """

    edit: Rewrite
    images: int
    choice: Choice | None


def rewrite(
    model: Rewritable,
    head: int,
    *,
    target: tuple[int, str],
    strength: Strength = "auto",
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
) -> Rewriting:
    """The rewriting of one output for one subgroup. Test rows are out of reach.

    Args:
        model: The model.
        head: The output, a 0/1 attribute's logit.
        target: (label, sensitive value) of the subgroup; label 1 raises the logit, 0 lowers it.
        strength: Size of lambda, ``paper`` or ``auto``.
        objective: What ``auto`` looks for, see `choose.OBJECTIVES`.
        max_loss: Overall validation accuracy that ``worst_group`` may cost, 0..1.

    Raises:
        UserError: If the subgroup has no training row, or as `choose_strength`.
    """
    mean, images = model.mean()
    sign, choice = 1 if target[0] == 1 else -1, None
    size = float(mean.numel()) if strength == "paper" else 0.0
    if isinstance(strength, int | float):
        size = float(strength)
    if strength == "auto":
        rows, shift = model.validation(mean)
        choice = choose_strength(
            rows, shift, shift.candidates(sign), target=target, objective=objective, max_loss=max_loss
        )
        size = abs(choice.strength)
    return Rewriting(Rewrite.of(head, mean, sign * size if size else 0.0), images, choice)


@dataclass(frozen=True)
class Corrected:
    """A run's stack with a rewriting on top, and what the stack does to test images.

    Attributes:
        stack: The stack, not applied.
        name: Name of the rewriting in it.
        rewriting: The rewriting.
        before: The run as it was trained.
        after: The run with the whole stack applied, compared with `before`.
    """

    stack: EditStack
    name: str
    rewriting: Rewriting
    before: FairnessReport
    after: FairnessReport


def rewrite_run(
    run: EditingRun,
    problem: Problem,
    base: EditStack,
    *,
    target: tuple[int, str],
    strength: Strength = "auto",
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
    reading: Reading = "joint",
    bootstrap: Bootstrap | None = None,
    who: str = "rewrite_run",
) -> Corrected:
    """Rewrite a run for a subgroup, then apply the stack and measure it on the test images.

    Args:
        run: The run.
        problem: Attribute that is corrected, and sensitive attribute.
        base: Edits that the rewriting comes on top of; it is added to them.
        target: (label, sensitive value) of the subgroup; label 1 raises the logit, 0 lowers it.
        strength: Size of lambda, ``paper`` or ``auto``.
        objective: What ``auto`` looks for.
        max_loss: Overall validation accuracy that ``worst_group`` may cost, 0..1.
        reading: Mean coefficients in a hierarchy: of combinations, or the product of each level's.
        bootstrap: Of the intervals.
        who: The caller, named in errors.

    Raises:
        UserError: If the subgroup or its training images do not exist, a split has no images, or as `rewrite`.
    """
    target = (target[0], problem.value(target[1], who=who))
    train, val, sealed = problem.splits.seal(problem.labels, problem.values)
    for split, rows in (("validation", val if strength == "auto" else None), ("test", sealed)):
        if rows is not None and not len(rows):
            raise UserError(
                f"{who}: expected {split} images whose {problem.sensitive} is known, got none. "
                "Use data that has train, val and test splits."
            )
    chosen = problem.subgroup(train, target, who)
    model = _RunRows(run, problem, base, chosen, val, reading)
    before = run.logits(problem.splits.test, problem.position) > 0
    found = rewrite(model, problem.position, target=target, strength=strength, objective=objective, max_loss=max_loss)
    name = base.add(found.edit)
    with base:
        after = run.logits(problem.splits.test, problem.position) > 0
    first, second = (
        final_report(sealed, guess, y_pred_before=before, target=target, bootstrap=bootstrap, purpose=purpose)
        for guess, purpose in ((before, "report before"), (after, "final report"))
    )
    return Corrected(base, name, found, first, second)


@dataclass(frozen=True)
class _RunRows:
    """A run with edits below the rewriting."""

    run: EditingRun
    problem: Problem
    base: EditStack
    chosen: npt.NDArray[np.int64]
    rows: Rows
    reading: Reading

    def mean(self) -> tuple[Tensor, int]:
        layer = self.run.require_layer("rewrite_run")
        return mean_coefficients(layer, self.run.batches(self.chosen), reading=self.reading), len(self.chosen)

    def validation(self, mean: Tensor) -> tuple[Rows, LogitShift]:
        rows = self.problem.splits.val
        with self.base:
            logits = self.run.logits(rows, self.problem.position)
        value = mean.expand(len(rows), *mean.shape)
        for a in self.run.coefficients(rows, "rewrite_run"):
            value = torch.einsum("zn...,zn->z...", value, host(a))
        return self.rows, LogitShift(logits, value.numpy())
