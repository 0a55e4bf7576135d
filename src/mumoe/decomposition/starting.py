"""Where the training of a replacement starts: its scales, its mean output, and, on request, the MLP's own weights.

At random weights experts have to be found. With ``init="weights"`` they start at what the MLP has already learned:

- ``cp-linear`` of a gated MLP, y = D (act(G x) * (U x)): expert n reads row n of G in its gate and row n of U in its
  component, and writes column n of D. It then computes the MLP with act replaced by a ReLU of the k largest; training
  mixes the components. Where there are fewer experts than hidden units, those that add most are kept.
- ``transcoder``, ``skip-transcoder``: feature n reads row n of the first layer and writes column n of the last; of a
  gated MLP it writes that column times the mean of what the product with U x adds.
- ``hadamard``: the hidden layer is a copy of the MLP's, and so is the output; experts start nearly alike. This is the
  control of a faithful replacement whose experts carry nothing.

The linear path starts at the ridge regression of what is left, on training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.decomposition.activations import Activations
from mumoe.decomposition.replacements import KINDS, Features, Replacement
from mumoe.errors import JobError, UserError
from mumoe.layers import MuMoE
from mumoe.models.surgery.parts import Parts

__all__ = ["INITS", "can_start_at_weights", "fresh", "resolve_init", "start_at_weights"]

WHO = "decompose"
INITS = ("auto", "random", "weights")
SCALE_ROWS, MEAN_ROWS, START_ROWS = 20_000, 50_000, 20_000
"""Rows that the scales, the mean output and the linear path are measured on."""
RIDGE = 1e-3
"""Of the regression, relative to the mean square of the inputs."""
SPREAD = 0.1
"""Standard deviation of the expert vectors of ``hadamard`` around 1, before they are normalized."""


def can_start_at_weights(kind: str, parts: Parts) -> bool:
    """Whether a kind can start at the weights of an MLP."""
    if kind in ("cp-linear", "hadamard"):
        return parts.kind == "gated mlp" and not parts.inner
    return kind in ("transcoder", "skip-transcoder") and parts.kind in ("mlp", "gated mlp") and not parts.inner


def resolve_init(init: str, kind: str, parts: Parts, levels: int = 1) -> str:
    """``random`` or ``weights``; auto is weights for ``cp-linear`` of one level where the MLP allows it.

    Raises:
        UserError: If the name is unknown, or the kind cannot start at these weights.
    """
    if init not in INITS:
        raise UserError(f"{WHO}: expected `init` out of {', '.join(INITS)}, got {init!r}. Use auto.")
    if levels > 1 and init == "weights":
        raise UserError(f"{WHO}: expected init='random' for experts on {levels} levels, got 'weights'. Use auto.")
    possible = levels == 1 and can_start_at_weights(kind, parts)
    if init == "auto":
        return "weights" if possible and kind == "cp-linear" else "random"
    if init == "weights" and not possible:
        raise UserError(
            f"{WHO}: expected a kind that can start at the weights of a {parts.kind}, got {kind!r}. Use init='random'."
        )
    return init


@torch.no_grad()
def fresh(replacement: Replacement, rows: Activations) -> Replacement:
    """Set the scales of a new replacement, and its bias to the mean output."""
    x, y = rows.first(SCALE_ROWS)
    replacement.in_scale.fill_(_rms(x))
    replacement.out_scale.fill_(_rms(y))
    replacement.bias.copy_(
        rows.first(MEAN_ROWS)[1].double().mean(0).float().to(replacement.bias) / replacement.out_scale
    )
    return replacement


def _rms(values: Tensor) -> float:
    found = float(values.double().square().mean().sqrt())
    if not found > 0:
        raise JobError(f"{WHO}: expected activations that are not all zero, got only zeros. Choose another layer.")
    return found


# The MLP's weights ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Weights of an MLP in units in which its inputs and outputs have a root mean square of 1.

    Attributes:
        first, first_bias: (hidden, in), (hidden,).
        second: (hidden, in) that the hidden layer is multiplied with; None of an MLP that is not gated.
        last: (out, hidden).
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor | None
    last: Tensor

    def inactive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, hidden) ReLU of the first layer, and what it is multiplied with."""
        hidden = torch.relu(x @ self.first.mT + self.first_bias)
        return hidden, torch.ones_like(hidden) if self.second is None else x @ self.second.mT

    def kept(self, x: Tensor) -> Tensor:
        """(hidden,) all hidden units, those that add most on rows x first."""
        hidden, factor = self.inactive(x)
        size = (hidden * factor).square().mean(0) * self.last.square().sum(0)
        return size.argsort(descending=True, stable=True)


def _weights_of(parts: Parts, replacement: Replacement) -> Weights:
    like = replacement.bias
    layers = [_affine(layer, width, like) for layer, width in zip(parts.linears, _inputs(parts), strict=True)]
    into, out = replacement.in_scale, replacement.out_scale
    second = layers[1][0] * into if len(layers) == 3 else None
    return Weights(layers[0][0] * into, layers[0][1], second, layers[-1][0] / out)


def _inputs(parts: Parts) -> list[int]:
    into, hidden, _ = parts.widths
    return [into] * (len(parts.linears) - 1) + [hidden]


def _affine(layer: nn.Module, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a linear layer of any class, from what it computes; a module's own dtype."""
    dtype = next(layer.parameters()).dtype
    bias = layer(torch.zeros(1, width, device=like.device, dtype=dtype))[0]
    weight = (layer(torch.eye(width, device=like.device, dtype=dtype)) - bias).mT
    return weight.to(like.dtype), bias.to(like.dtype)


@torch.no_grad()
def start_at_weights(replacement: Replacement, parts: Parts, rows: Activations) -> Replacement:
    """Set a replacement that `fresh` has scaled to the weights of the MLP.

    Args:
        replacement: Of a kind that `can_start_at_weights`.
        parts: The MLP's.
        rows: Rows of training.
    """
    x, y = (values.to(replacement.bias.device) for values in rows.first(START_ROWS))
    x, y = x / replacement.in_scale, y / replacement.out_scale
    weights = _weights_of(parts, replacement)
    starts = {"cp-linear": _start_experts, "hadamard": _start_copy}
    starts.get(replacement.shape.kind, _start_features)(replacement, weights, x)
    _start_rest(replacement, x, y)
    return replacement


def _set_gate(replacement: Replacement, weight: Tensor, bias: Tensor) -> None:
    """The first experts' rows of the gate; the others stay random."""
    assert replacement.gate is not None
    router: Any = replacement.gate.routers[0]
    router.weight[: len(weight)] = weight
    router.bias[: len(bias)] = bias


def _start_experts(replacement: Replacement, weights: Weights, x: Tensor) -> None:
    assert isinstance(replacement.mixture, MuMoE)
    assert weights.second is not None
    part: Any = replacement.mixture.factorization
    factor, into, out = part.expert_factor_0, part.in_factor, part.out_factor
    order = weights.kept(x)
    experts = order[: len(factor)].sort().values
    components = torch.cat([experts, order[len(factor) :]])[: factor.shape[1]]
    _set_gate(replacement, weights.first[experts], weights.first_bias[experts])
    count = min(len(experts), len(components))
    factor.zero_()  # experts beyond the hidden units add nothing at first
    factor[range(count), range(count)] = 1.0
    into[:, : len(components)] = weights.second[components].mT
    out[:, : len(components)] = weights.last[:, components]


def _start_features(replacement: Replacement, weights: Weights, x: Tensor) -> None:
    assert isinstance(replacement.mixture, Features)
    vectors = replacement.mixture.vectors
    kept = weights.kept(x)[: len(vectors)].sort().values
    hidden, factor = weights.inactive(x)
    # The best multiple of the ReLU: regression through 0.
    slope = (hidden.square() * factor).sum(0) / hidden.square().sum(0).clamp(min=1e-12)
    _set_gate(replacement, weights.first[kept], weights.first_bias[kept])
    vectors[: len(kept)] = (weights.last * slope)[:, kept].mT


def _start_copy(replacement: Replacement, weights: Weights, x: Tensor) -> None:
    assert isinstance(replacement.mixture, MuMoE)
    assert replacement.hidden is not None
    assert replacement.hidden.second is not None
    assert weights.second is not None
    part: Any = replacement.mixture.factorization
    factor, into = part.expert_factor_0, part.in_factor
    replacement.hidden.first.weight.copy_(weights.first)
    replacement.hidden.first.bias.copy_(weights.first_bias)
    replacement.hidden.second.weight.copy_(weights.second)
    factor.normal_(1.0, SPREAD)
    factor.div_(factor.norm(dim=1, keepdim=True))
    a = replacement.coefficients_of(x)
    assert a is not None
    into.copy_(weights.last.mT / (a @ factor).mean(0).clamp(min=1e-6))


def _start_rest(replacement: Replacement, x: Tensor, y: Tensor) -> None:
    """The linear path as ridge regression of what is left, and the bias as the mean of the rest."""
    left = y - replacement.output_of(x)[0]
    if replacement.skip is not None:
        a, b = (x - x.mean(0)).double(), (left - left.mean(0)).double()
        gram = a.mT @ a
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        replacement.skip.weight.copy_(torch.linalg.solve(gram, a.mT @ b).mT)
        left = y - replacement.output_of(x)[0]
    replacement.bias.add_(left.mean(0))


def rank_at_weights(kind: str, hidden: int) -> int:
    """Rank that gives each hidden unit a component of its own; 0 for kinds without one."""
    return hidden if KINDS[kind].factorization == "cp" and KINDS[kind].sparse else 0
