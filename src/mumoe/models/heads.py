"""Classification heads by specification, all (rows, in_features) -> (rows, num_classes) logits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.costs import count_parameters, rank_for_budget
from mumoe.errors import UserError
from mumoe.factorizations import FACTORIZATIONS
from mumoe.layers import MuMoE, parse_spec

__all__ = ["Head", "build_head", "matched_spec"]

FORMS = "CPMuMoE-r512-e128 (or Tucker, TT, TR, Dense), linear, highrank-linear-r512, sparse-moe-e64-k2"


class Head(nn.Module):
    """Standardization of features, a layer, and, in penultimate position, a linear layer behind it.

    Args:
        layer: Maps features to logits, or to features in penultimate position.
        in_features: Width of the features.
        classifier: The linear layer behind it, in penultimate position.
        activation: Between the two in penultimate position.

    Attributes:
        mean, scale: Buffers of the standardization (x - mean) * scale, the identity until `standardize`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        layer: nn.Module,
        in_features: int,
        classifier: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        self.layer, self.activation, self.classifier = layer, activation, classifier

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Take statistics of the training features; a constant feature is left unscaled."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0))

    def prepare(self, features: Tensor) -> Tensor:
        """What the layer sees."""
        return (features - self.mean) * self.scale

    def finish(self, output: Tensor) -> Tensor:
        """From the layer's output to logits: the identity in final position."""
        if self.classifier is None:
            return output
        return self.classifier(output if self.activation is None else self.activation(output))

    def forward(self, features: Tensor) -> Tensor:
        return self.finish(self.layer(self.prepare(features)))

    def forward_with_loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the layer's own load-balancing loss, 0 where it has none."""
        prepared = self.prepare(features)
        if isinstance(self.layer, SparseMoE):
            output, loss = self.layer(prepared, return_loss=True)
            return self.finish(output), loss
        return self.finish(self.layer(prepared)), features.new_zeros(())


def build_head(
    spec: str,
    in_features: int,
    num_classes: int,
    *,
    position: str = "final",
    hidden_features: int | None = None,
    activation: str = "gelu",
    **options: Any,
) -> Head:
    """A head from its specification.

    Args:
        spec: ``CPMuMoE-r512-e128`` and its relatives, ``linear``, ``highrank-linear-r<rank>`` or
            ``sparse-moe-e<experts>-k<k>``.
        in_features: Width of the features.
        num_classes: Number of classes.
        position: ``final`` (the layer makes the logits) or ``penultimate`` (a linear layer follows, Figure 5).
        hidden_features: Width of a penultimate layer; by default that of the features.
        activation: After a penultimate layer: ``gelu`` or ``none``.
        options: Options of `MuMoE`, such as ``gate``, ``norm`` or ``gate_options``; other heads take none.

    Raises:
        UserError: If the specification or an option is not known; the forms are shown.
    """
    if position not in ("final", "penultimate"):
        raise UserError(f"build_head: expected position final or penultimate, got {position!r}. Take one of these.")
    if activation not in ("gelu", "none"):
        raise UserError(f"build_head: expected activation gelu or none, got {activation!r}. Take one of these.")
    if position == "final":
        return Head(_layer(spec, in_features, num_classes, options), in_features)
    width = hidden_features or in_features
    layer = _layer(spec, in_features, width, options)
    return Head(layer, in_features, nn.Linear(width, num_classes), nn.GELU() if activation == "gelu" else None)


def _layer(spec: str, in_features: int, out_features: int, options: dict[str, Any]) -> nn.Module:
    if any(spec.startswith(kind.title + "-") for kind in FACTORIZATIONS.values()):
        return MuMoE.from_spec(spec, in_features, out_features, **options)
    if spec == "linear":
        return nn.Linear(in_features, out_features)
    if match := re.fullmatch(r"highrank-linear-r(\d+)", spec):
        return HighRankLinear(in_features, out_features, int(match[1]))
    if match := re.fullmatch(r"sparse-moe-e(\d+)(?:-k(\d+))?", spec):
        return SparseMoE(in_features, out_features, int(match[1]), int(match[2] or 2))
    raise UserError(f"build_head: expected a head such as {FORMS}, got {spec!r}. Write one of these forms.")


def matched_spec(baseline: str, spec: str, in_features: int, num_classes: int) -> str:
    """Specification of a baseline with as many parameters as a MuMoE head, gate included, within one step.

    Args:
        baseline: ``linear`` (has no free size, returned as it is), ``highrank-linear`` or ``sparse-moe``
            (of which one expert is the least), or a factorization's title such as ``TRMuMoE``, which keeps
            the experts.
        spec: The head to match.
        in_features: Width of the features.
        num_classes: Number of classes.
    """
    if baseline == "linear":
        return baseline
    layer = parse_spec(spec)
    sizes = (in_features, num_classes)
    budget = count_parameters(layer["factorization"], *sizes, layer["num_experts"], layer["rank"])
    if baseline == "highrank-linear":
        rank = rank_for_budget(
            parameters=budget, in_features=in_features, out_features=num_classes, factorization=baseline
        )
        return f"highrank-linear-r{rank}"
    if baseline == "sparse-moe":
        experts = max(1, round(budget / count_parameters("sparse-moe", *sizes, 1)))
        return f"sparse-moe-e{experts}-k{min(2, experts)}"
    kinds = {kind.title: name for name, kind in FACTORIZATIONS.items()}
    if baseline not in kinds:
        choices = ", ".join(["linear", "highrank-linear", "sparse-moe", *kinds])
        raise UserError(f"matched_spec: expected a baseline out of {choices}, got {baseline!r}. Take one of these.")
    rank = _matched_rank(kinds[baseline], budget, sizes, layer["num_experts"])
    return f"{baseline}-r{rank}-e{'x'.join(map(str, layer['num_experts']))}"


def _matched_rank(name: str, budget: int, sizes: tuple[int, int], num_experts: Sequence[int]) -> int:
    return rank_for_budget(
        parameters=budget,
        in_features=sizes[0],
        out_features=sizes[1],
        num_experts=num_experts,
        factorization=name,
    )
