"""What is trained: a head on cached features, or a backbone with a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mumoe.factorizations import FACTORIZATIONS
from mumoe.models.heads import Head, build_head
from mumoe.training.config import TrainConfig

__all__ = ["Network", "column_statistics", "make_head", "parameter_count"]


def column_statistics(x: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over some rows, in float64 and by blocks of rows.

    Shape:
        x (num_images, num_features); returns two (num_features,) float32.
    """
    blocks = np.array_split(rows, max(1, len(rows) // 4096))
    mean = sum(np.asarray(x[block], dtype=np.float64).sum(0) for block in blocks) / len(rows)
    squares = sum(((np.asarray(x[block], dtype=np.float64) - mean) ** 2).sum(0) for block in blocks)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(squares / len(rows))).float()


def is_mumoe(spec: str) -> bool:
    """Whether a specification names one of the layer's factorizations."""
    return spec.partition("-")[0] in {kind.title for kind in FACTORIZATIONS.values()}


def make_head(config: TrainConfig, num_features: int, num_classes: int) -> Head:
    """Build the head that a config asks for.

    Raises:
        UserError: If the specification, the gate or the norm is not known.
    """
    options: Mapping[str, Any] = {"gate": config.gate, "norm": config.norm} if is_mumoe(config.head) else {}
    return build_head(config.head, num_features, num_classes, position=config.position, **options)


def parameter_count(module: nn.Module) -> int:
    """Number of parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


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

    @property
    def on_features(self) -> bool:
        """Whether it reads features: then batches can be large when it is evaluated."""
        return self.backbone is None

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = inputs if self.backbone is None else self.backbone(inputs)
        return self.head.forward_with_loss(features)
