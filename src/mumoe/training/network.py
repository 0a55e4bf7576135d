"""What is trained: a head on cached features, or a backbone with a head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.training.config import TrainConfig

__all__ = ["Head", "Network", "Standardize", "column_statistics", "make_head"]


class Standardize(nn.Module):
    """(x - mean) / deviation by column, with the statistics as buffers, so that a saved model is complete.

    Shape:
        (..., num_features) -> the same.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation

    def extra_repr(self) -> str:
        return f"num_features={self.mean.numel()}"


def column_statistics(x: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over some rows, in float64 and by blocks of rows.

    A constant column gets deviation 1, so that it becomes 0 and not a division by zero.
    """
    blocks = np.array_split(rows, max(1, len(rows) // 4096))
    count = max(len(rows), 1)
    mean = sum(np.asarray(x[block], dtype=np.float64).sum(0) for block in blocks) / count
    squares = sum(((np.asarray(x[block], dtype=np.float64) - mean) ** 2).sum(0) for block in blocks)
    deviation = np.sqrt(squares / count)
    deviation[deviation <= 1e-12 + 1e-7 * np.abs(mean)] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


class Head(nn.Module):
    """Everything between the features and the logits.

    Args:
        layer: The head itself, or the layer before the last.
        standardize: Whether columns are standardized first.
        num_features: Width of the features.
        output: A last linear layer behind a penultimate one.

    Shape:
        (B, num_features) -> (B, num_classes); with ``return_loss=True`` also a scalar, the layer's own
        load-balancing loss (0 if it has none).
    """

    def __init__(
        self, layer: nn.Module, num_features: int, *, standardize: bool, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.standardize = Standardize(num_features) if standardize else nn.Identity()
        self.layer = layer
        self.output = output if output is not None else nn.Identity()
        self._balances = "return_loss" in inspect.signature(layer.forward).parameters

    def forward(self, features: Tensor, return_loss: bool = False) -> Any:
        x = self.standardize(features)
        if return_loss and self._balances:
            x, loss = self.layer(x, return_loss=True)
            return self.output(x), loss
        logits = self.output(self.layer(x))
        return (logits, logits.new_zeros(())) if return_loss else logits


def make_head(config: TrainConfig, num_features: int, num_classes: int) -> Head:
    """Build the head that a config asks for.

    Raises:
        UserError: If the specification is wrong (one line, with the nearest right one).
    """
    from mumoe.models.heads import build_head

    penultimate = config.position == "penultimate"
    width = num_features if penultimate else num_classes
    layer = build_head(config.head, num_features, width, **head_options(config))
    output = nn.Linear(num_features, num_classes) if penultimate else None
    standardize = config.zscore and config.mode == "features"
    return Head(layer, num_features, standardize=standardize, output=output)


def head_options(config: TrainConfig, spec: str | None = None) -> Mapping[str, Any]:
    """Gate and norm, for a MuMoE head; nothing for the others."""
    if "mumoe" in (spec or config.head).lower().partition("-")[0]:
        return {"gate": config.gate, "norm": config.norm}
    return {}


class Network(nn.Module):
    """Backbone (when it is trained) and head as one module, as the loop trains it.

    Shape:
        Images (B, 3, H, W), or features (B, num_features) without a backbone -> logits (B, num_classes) and
        the scalar load-balancing loss.
    """

    def __init__(self, head: Head, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.head = head
        self.backbone = backbone

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = inputs if self.backbone is None else self.backbone(inputs)
        logits, loss = self.head(features, return_loss=True)
        return logits, loss
