"""The paper's correction of a bias (eq. 6): find the experts that treat a subpopulation, and correct their output.

The mean coefficients a-bar say to which experts the gate sends a subpopulation. Adding lambda a-bar' a to one
output's logit gives everybody who is sent to the same experts the same correction, and others little. With
lambda = N, the number of experts, an input treated uniformly (each coefficient 1/N) moves by 1.

In a hierarchy the coefficients of eq. 6 are those of *combinations* of experts, the products over the levels. So
a-bar is the mean product (reading ``joint``), and N the number of combinations. The product of each level's mean
(reading ``levels``) is smaller to store and folds into fewer components, but also reaches combinations that the
subpopulation never uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mumoe.devices import host
from mumoe.editing.edits import Rewrite
from mumoe.errors import UserError, unknown_name
from mumoe.layers import MuMoE

__all__ = ["mean_coefficients", "rewriting"]


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
def mean_coefficients(
    layer: MuMoE, features: Tensor | Iterable[Tensor], *, reading: Literal["joint", "levels"] = "joint"
) -> Tensor:
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
