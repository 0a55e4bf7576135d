"""The paper's correction of a bias (eq. 6): find the experts that process a subpopulation, and correct their output.

The mean coefficients a-bar say to which experts the gate sends a subpopulation. Adding lambda a-bar' a to one
output's logit gives the same correction to all inputs sent to the same experts, and little to others. With
lambda = N, the number of experts, an input treated uniformly (each coefficient 1/N) moves by 1.

In a hierarchy the coefficients of eq. 6 are those of *combinations* of experts, the products over the levels. So
a-bar is the mean product (reading ``joint``), and N the number of combinations. The product of each level's mean
(reading ``levels``) is smaller to store and folds into fewer components, but also reaches combinations that the
subpopulation never uses.

`choose_rewriting` is the procedure for any model; `mumoe.Run.rewrite` runs it on a trained run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mumoe.analysis.contributions import combine, contributing_pairs, rows_of_pairs
from mumoe.devices import host
from mumoe.editing.choose import Choice, LabelledRows, LogitShift, Objective, choose_strength
from mumoe.editing.expert_edits import Rewrite
from mumoe.editing.operations import AddedTerm, Mean, Product, listed, separate
from mumoe.errors import UserError, unknown_argument
from mumoe.layers import MuMoE

__all__ = [
    "DENSE",
    "Reading",
    "Strength",
    "choose_rewriting",
    "joint_sum",
    "mean_coefficients",
    "moved_by",
    "rewriting",
]

Reading = Literal["joint", "levels"]
Strength = float | Literal["auto", "paper"]
"""Size of lambda, ``paper`` (the number of combinations of experts) or ``auto`` (chosen on validation rows)."""

DENSE = 65_536
"""Up to how many combinations of experts mean coefficients are a plain tensor; above, those that occur are listed."""


def rewriting(
    layer: MuMoE,
    head: int,
    mean: Mean,
    *,
    direction: Literal["raise", "lower"] = "raise",
    strength: float | None = None,
) -> Rewrite:
    """The paper's rewriting of one output: lambda = N by default, its sign by the direction.

    Args:
        layer: The layer.
        head: The output, a 0/1 attribute's logit.
        mean: Mean coefficients of the subpopulation, (N_1, .., N_E), from `mean_coefficients`.
        direction: Whether the subpopulation is missed (``raise``) or wrongly included (``lower``).
        strength: Size of lambda, at least 0; the number of (combinations of) experts by default.
    """
    if direction not in ("raise", "lower"):
        raise unknown_argument("rewriting", "direction", direction, ("raise", "lower"))
    size = float(mean.numel()) if strength is None else float(strength)
    edit = Rewrite.of(head, mean, size if direction == "raise" else -size)
    edit.operation(layer.factorization)
    return edit


@torch.no_grad()
def mean_coefficients(layer: MuMoE, features: Tensor | Iterable[Tensor], *, reading: Reading = "joint") -> Mean:
    """Mean coefficients of a subpopulation, (N_1, .., N_E) in float64; in evaluation mode.

    Of a hierarchy with more than `DENSE` combinations they are a sparse tensor of those that occur, or a `Product`.

    Args:
        layer: The layer.
        features: Its inputs, (..., in_features), or batches of them.
        reading: ``joint`` means products of the levels' coefficients row by row, ``levels`` multiplies the means.

    Raises:
        UserError: If there is no row.
    """
    if reading not in ("joint", "levels"):
        raise unknown_argument("mean_coefficients", "reading", reading, ("joint", "levels"))
    batches = [features] if isinstance(features, Tensor) else features
    training, count, sums = layer.training, 0, [torch.zeros(())]
    layer.eval()
    try:
        for batch in batches:
            levels = [host(a.reshape(-1, a.shape[-1])) for a in layer.coefficients(batch)]
            count += len(levels[0])
            parts = [joint_sum(levels)] if reading == "joint" else [a.sum(0) for a in levels]
            sums = [
                part if total.ndim == 0 else total + part for total, part in zip(sums * len(parts), parts, strict=False)
            ]
    finally:
        layer.train(training)
    if not count:
        raise UserError("mean_coefficients: expected rows of the subpopulation, got none. Check the filter.")
    means = [part / count for part in sums]
    if len(means) > 1 and math.prod(map(len, means)) > DENSE:
        return Product(tuple(means))
    mean = means[0].coalesce() if means[0].is_sparse else means[0]
    for part in means[1:]:
        mean = mean[..., None] * part
    return mean


def joint_sum(levels: Sequence[Tensor]) -> Tensor:
    """(N_1, .., N_E) products of the levels' coefficients, (rows, N_e) each, summed over the rows.

    Sparse, with the combinations that occur, where there are more than `DENSE`.
    """
    if len(levels) > 1 and math.prod(a.shape[1] for a in levels) > DENSE:
        return _listed_sum(levels)
    letters = "abcdefghijk"[: len(levels)]
    inputs = ",".join(f"z{letter}" for letter in letters)
    joint: Tensor = torch.einsum(f"{inputs}->{letters}", *levels)
    return joint


def _listed_sum(levels: Sequence[Tensor]) -> Tensor:
    """As `joint_sum`, sparse, in memory of the combinations that occur and a bounded number of their uses."""
    sizes = [a.shape[1] for a in levels]
    total = listed(levels[0].new_zeros(0, dtype=torch.long), levels[0].new_zeros(0), sizes)
    rows = rows_of_pairs(levels)
    for part in zip(*(a.split(rows) for a in levels), strict=True):
        found = contributing_pairs(part)
        unit, place = combine(found.experts, sizes).unique(return_inverse=True)
        sums = found.value.new_zeros(len(unit)).index_add_(0, place, found.value)
        total = (total + listed(unit, sums, sizes)).coalesce()
    return total


def moved_by(mean: Mean, coefficients: Sequence[Tensor]) -> Tensor:
    """(rows,) what a rewriting of lambda 1 adds to the logit, a-bar . a.

    Args:
        mean: Mean coefficients, (N_1, .., N_E).
        coefficients: One (rows, N_e) tensor per level, of the same dtype.
    """
    if isinstance(mean, Product) or mean.is_sparse:
        return AddedTerm(0, separate(mean)).amount(coefficients)
    value = mean.expand(len(coefficients[0]), *mean.shape)
    for a in coefficients:
        value = torch.einsum("zn...,zn->z...", value, a)
    return value


def choose_rewriting(
    head: int,
    mean: Mean,
    validation: Callable[[], tuple[LabelledRows, LogitShift]],
    *,
    target: tuple[int, str],
    strength: Strength = "auto",
    objective: Objective = "worst_group",
    max_loss: float = 0.01,
) -> tuple[Rewrite, Choice | None]:
    """The rewriting of one output for one subgroup.

    Args:
        head: The output, a 0/1 attribute's logit.
        mean: Mean coefficients of the subgroup's training rows, (N_1, .., N_E).
        validation: Returns validation rows, with their logits before the rewriting and what a lambda of 1 adds to each;
            called only where lambda is chosen.
        target: (label, sensitive value) of the subgroup; label 1 raises the logit, 0 lowers it.
        strength: Size of lambda, ``paper`` or ``auto``.
        objective: What ``auto`` looks for, see `choose.OBJECTIVES`.
        max_loss: Overall validation accuracy that ``worst_group`` may cost, 0..1.

    Returns:
        The edit, whose strength is lambda with its sign, and how it was chosen; None if it was given.

    Raises:
        UserError: As `choose_strength`.
    """
    sign, choice = 1 if target[0] == 1 else -1, None
    if strength == "auto":
        rows, shift = validation()
        choice = choose_strength(
            rows, shift, shift.candidates(sign), target=target, objective=objective, max_loss=max_loss
        )
        size = abs(choice.strength)
    else:
        size = float(mean.numel()) if strength == "paper" else float(strength)
    return Rewrite.of(head, mean, sign * size if size else 0.0), choice
