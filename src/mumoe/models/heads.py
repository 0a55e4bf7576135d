"""Classification heads by specification, all (rows, in_features) -> (rows, num_classes) logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mumoe.baselines import HighRankLinear, SparseMoE
from mumoe.costs import count_parameters, rank_for_budget
from mumoe.errors import UserError, unknown_name
from mumoe.factorizations import FACTORIZATIONS
from mumoe.layers import MuMoE
from mumoe.specs import BASELINES, format_spec, read_spec

__all__ = ["Classifier", "Head", "build_head", "matched_spec"]


class Head(nn.Module):
    """Standardization of features, a layer, and, in penultimate position, a linear layer after it.

    Args:
        layer: Maps features to logits, or to features in penultimate position.
        in_features: Width of the features.
        classifier: The linear layer after it, in penultimate position.
        activation: Between the two in penultimate position.
        drop: Probability of dropout on the layer's input in training. A `MuMoE` layer has its own.

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
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = drop
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        self.layer, self.activation, self.classifier = layer, activation, classifier

    def standardize(self, mean: Tensor, std: Tensor, floor: float = 0.0) -> None:
        """Set the statistics of the training features; a constant feature is left unscaled.

        Args:
            mean: (in_features,).
            std: (in_features,).
            floor: Lower bound of each deviation, as a share of the median one. Without it, a feature that is nearly
                constant in training may be thousands of deviations away on another image.
        """
        varied = std[std > 1e-6]
        floor = floor * float(varied.median()) if len(varied) else 0.0
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=max(floor, 1e-6)), 1.0))

    def prepare(self, features: Tensor) -> Tensor:
        """The input of the layer, from features."""
        return (features - self.mean) * self.scale

    def finish(self, output: Tensor) -> Tensor:
        """From the layer's output to logits: the identity in final position."""
        if self.classifier is None:
            return output
        return self.classifier(output if self.activation is None else self.activation(output))

    def forward(self, features: Tensor) -> Tensor:
        return self.finish(self.layer(self._dropped(self.prepare(features))))

    def _dropped(self, prepared: Tensor) -> Tensor:
        return F.dropout(prepared, self.drop) if self.drop and self.training else prepared

    def forward_with_loss(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the layer's own load-balancing loss, 0 if it has none."""
        prepared = self._dropped(self.prepare(features))
        if isinstance(self.layer, SparseMoE):
            output, loss = self.layer(prepared, return_loss=True)
            return self.finish(output), loss
        return self.finish(self.layer(prepared)), features.new_zeros(())

    def forward_with_coefficients(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the coefficients (B, N_1) of a `MuMoE` layer's first level."""
        layer: Any = self.layer
        output, coefficients = layer(self.prepare(features), return_coefficients="sparse")
        return self.finish(output), coefficients[0].to_dense()


class Classifier(nn.Module):
    """Backbone, then head.

    Shape:
        images (B, 3, H, W) -> logits (B, num_classes).
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def build_head(
    spec: str, in_features: int, num_classes: int, *, position: str = "final", drop: float = 0.0, **options: Any
) -> Head:
    """A head from its specification.

    Args:
        spec: ``CPMuMoE-r512-e128`` and its relatives, ``linear``, ``highrank-linear-r<rank>`` or
            ``sparse-moe-e<experts>-k<k>``.
        in_features: Width of the features.
        num_classes: Number of classes.
        position: ``final`` (the layer makes the logits) or ``penultimate`` (GELU and a linear layer follow, Figure 5).
        drop: Probability of dropout on the layer's input in training.
        options: Options of `MuMoE`, such as ``gate``, ``norm`` or ``gate_options``; ignored by other heads.

    Raises:
        UserError: If the specification or an option is not known; the forms are shown.
    """
    if position not in ("final", "penultimate"):
        raise UserError(f"build_head: expected position final or penultimate, got {position!r}. Use one of these.")
    final = position == "final"
    layer = _layer(spec, in_features, num_classes if final else in_features, {**options, "drop": drop})
    drop = 0.0 if isinstance(layer, MuMoE) else drop
    if final:
        return Head(layer, in_features, drop=drop)
    return Head(layer, in_features, nn.Linear(in_features, num_classes), nn.GELU(), drop)


def _layer(spec: str, in_features: int, out_features: int, options: dict[str, Any]) -> nn.Module:
    found = read_spec(spec, "build_head")
    sizes = (in_features, out_features)
    if found.kind == "linear":
        return nn.Linear(*sizes)
    if found.kind == "highrank-linear":
        return HighRankLinear(*sizes, found.rank)  # type: ignore[arg-type]
    if found.kind == "sparse-moe":
        return SparseMoE(*sizes, found.num_experts[0], found.k)
    return MuMoE(*sizes, found.num_experts, found.kind, found.rank, **options)


def matched_spec(baseline: str, spec: str, in_features: int, num_classes: int) -> str:
    """Specification of a baseline with as many parameters as a MuMoE head, gate included, within one step.

    Args:
        baseline: ``linear`` (has no free size, returned as it is), ``highrank-linear`` or ``sparse-moe``
            (with at least one expert), or a factorization's title such as ``TRMuMoE``, which keeps
            the experts.
        spec: The head to match.
        in_features: Width of the features.
        num_classes: Number of classes.
    """
    head, sizes = read_spec(spec), (in_features, num_classes)
    budget = count_parameters(head.kind, *sizes, head.num_experts or 1, head.rank)
    if baseline == "linear":
        return baseline
    if baseline == "sparse-moe":
        experts = max(1, round(budget / count_parameters("sparse-moe", *sizes, 1)))
        return f"sparse-moe-e{experts}-k{min(2, experts)}"
    kinds = {"highrank-linear": "highrank-linear", **{kind.title: name for name, kind in FACTORIZATIONS.items()}}
    if baseline not in kinds:
        raise unknown_name("matched_spec", "baseline", baseline, [*BASELINES, *kinds])
    rank = rank_for_budget(
        parameters=budget,
        in_features=in_features,
        out_features=num_classes,
        num_experts=head.num_experts or 1,
        factorization=kinds[baseline],
    )
    if baseline in BASELINES:
        return f"{baseline}-r{rank}"
    return format_spec(kinds[baseline], head.num_experts, rank)
